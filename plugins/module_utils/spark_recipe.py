"""Load launch recipes of both formats, eugr v1 and sparkrun v2, and render one into a launch plan.

    recipe = load("recipes/minimax-m2.5.yaml")
    plan = render(recipe, [{"host": "spark1", "address": "10.0.0.1"}, …], 8888, container="vllm_node")

Everything that is wrong is a RecipeError whose messages each name the file, the field and what was expected. Pure but
for reading the recipe's file; no value of a recipe is ever run here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator

import yaml

from .spark_launch_args import ADDRESS, CARRIED, CONTAINER, MOUNT, quote
from .spark_recipe_command import compose, needed
from .spark_recipe_fields import Faults, Recipe, RecipeError, known_of, other_runtime, parse, say
from .spark_recipe_memory import memory, quantization, vision

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SUFFIXES = (".yaml", ".yml")
DEEPEST = 5  # levels of folders in which recipes are looked for
LARGEST = 64 * 1024  # bytes; the largest public recipe has 8 kB, and YAML is slow to read
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Enough Sparks for a trial rendering of any recipe.
_MANY = [{"host": f"spark{n}", "address": f"192.0.2.{n}"} for n in range(1, 65)]


def load(path) -> Recipe:
    """Read and validate one recipe file, including a trial rendering; raises RecipeError."""
    path = os.fspath(path)
    stem = os.path.splitext(os.path.basename(path))[0]
    label = os.path.join(os.path.basename(os.path.dirname(os.path.abspath(path))), os.path.basename(path))
    label = "".join(c if c.isprintable() else "?" for c in label)
    known: dict = {}

    def fail(messages, runtime=None):
        raise RecipeError([f"{label}: {m}" for m in messages], name=stem, source=path, runtime=runtime, known=known)

    if not NAME.fullmatch(stem):
        fail(["the file's name: expected letters, digits, dots, dashes and underscores, at most 128"])
    try:
        data = _read(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        fail([_plainly(error)])
    return _recipe(data, path, stem, label, known, fail)


def from_mapping(data, name: str) -> Recipe:
    """A recipe out of its fields, as `load` reads them from a file called `name`; raises RecipeError."""

    def fail(messages, runtime=None):
        raise RecipeError(messages, name=name, runtime=runtime)

    if not isinstance(name, str) or not NAME.fullmatch(name):
        fail(["name: expected letters, digits, dots, dashes and underscores, at most 128"])
    return _recipe(data, "", name, name, {}, fail)


def _recipe(data, path, stem, label, known, fail):
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        fail([f"expected a recipe, a mapping of fields, got {say(data)}"])
    known.update(known_of(data, stem))
    runtime = other_runtime(data)
    if runtime:
        fail([f"runtime: {runtime} is not run here, expected a vLLM recipe"], runtime)
    faults = Faults()
    recipe = parse(data, path, stem, label, faults)
    if faults:
        fail(faults)
    render(recipe, _MANY, 8888)
    return recipe


def write(data: dict) -> str:
    """The YAML of a recipe's fields, which reads as the same fields; a command gets a line a flag."""
    fields = dict(data)
    if isinstance(fields.get("command"), str):
        fields["command"] = _lines(fields["command"])
    return yaml.dump(fields, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=4096)


class _Dumper(yaml.SafeDumper):
    """Plain YAML whose texts of several lines stand as such."""

    def ignore_aliases(self, data):
        """Write everything out."""
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _lines(command: str) -> str:
    """A command with each of its flags on a line of its own; one that is more than plain words stays as it is."""
    if not re.fullmatch(r"[A-Za-z0-9_./:=,+@%{}' -]+", command) or command.count("'") % 2:
        return command
    parts = re.split(r" +(?=--[a-z])", command.strip())
    # A split inside quotes would change the command.
    if any(part.count("'") % 2 for part in parts):
        return command
    return " \\\n  ".join(parts) + "\n"


def files(dirs) -> Iterator[tuple[str, str | RecipeError]]:
    """(stem, path) of each recipe file below the folders, a folder's own before those of the folders in it.

    A folder that cannot be read is (folder, RecipeError). The first of several need not be there yet: the first recipe
    that is saved makes it.
    """
    for number, top in enumerate(dirs):
        level = [os.path.expanduser(os.fspath(top))]
        for depth in range(DEEPEST):
            deeper = []
            for folder in level:
                try:
                    with os.scandir(folder) as found:
                        entries = sorted(found, key=lambda entry: entry.name)
                except OSError as error:
                    if isinstance(error, FileNotFoundError) and depth == 0 and number == 0 and len(dirs) > 1:
                        continue
                    message = f"{folder}: expected a folder of recipes: {error.strerror}"
                    yield folder, RecipeError(message, name=os.path.basename(folder) or folder, source=folder)
                    continue
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.name.endswith(SUFFIXES):
                        yield os.path.splitext(entry.name)[0], entry.path
                    elif entry.is_dir(follow_symlinks=False):
                        deeper.append(entry.path)
            level = deeper


def load_all(dirs) -> list[Recipe | RecipeError]:
    """Every recipe of the folders, by name; a file that cannot be used is a RecipeError in its place.

    The first folder that has a name wins; the same name later, or with the other suffix, is an error of its own.
    """
    found: list[Recipe | RecipeError] = []
    taken: dict[str, str] = {}
    for name, path in files(dirs):
        if isinstance(path, RecipeError):
            found.append(path)
        elif name in taken:
            message = f"{path}: the file's name: expected one that is not taken, {taken[name]} has it"
            found.append(RecipeError(message, name=name, source=path))
        else:
            taken[name] = path
            try:
                found.append(load(path))
            except RecipeError as error:
                found.append(error)
    return sorted(found, key=lambda item: (item.name.lower(), item.source))


def find(name: str, dirs) -> str:
    """The path of the recipe with this name; raises RecipeError with reason unknown_model, naming near ones."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise RecipeError(
            f"{str(name)[:60]!r} is not a model's name: expected letters, digits, dots, dashes and underscores.",
            reason="unknown_model",
        )
    names = []
    for stem, path in files(dirs):
        if isinstance(path, str):
            if stem == name:
                return path
            names.append(stem)
    near = nearest(name, names)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    hint = hint or (f" There is {', '.join(sorted(names)[:8])}." if names else " There are no recipes.")
    raise RecipeError(f"There is no recipe named {name}.{hint}", reason="unknown_model", name=name)


def nearest(name: str, names: list[str], most: int = 3) -> list[str]:
    """Which of the names are most like one that is none of them, the most like first; case and punctuation aside."""
    import difflib

    def plain(text):
        return re.sub(r"[^a-z0-9]", "", text.lower())

    def likeness(other):
        same = difflib.SequenceMatcher(None, plain(name), plain(other)).ratio()
        return max(same, 0.9 if plain(name) and plain(name) in plain(other) else 0)

    found = sorted(((likeness(other), other) for other in dict.fromkeys(names)), key=lambda pair: (-pair[0], pair[1]))
    return [other for same, other in found[:most] if same >= 0.45]


def render(recipe: Recipe, nodes, port: int, host="0.0.0.0", container="vllm_node", overrides=None) -> dict:
    """The launch plan of a recipe on these Sparks, head first; see the role's README for its shape.

    nodes: [{"host", "address"}] of the vllm group. port: where the house serves. overrides: values for the recipe's
    placeholders, each kept as one literal. Raises RecipeError (broken_recipe or too_few_sparks).
    """

    def fail(message, reason="broken_recipe"):
        raise RecipeError(
            message if reason != "broken_recipe" else f"{recipe.label}: {message}",
            reason=reason,
            name=recipe.name,
            source=recipe.source,
        )

    if not CONTAINER.fullmatch(container):
        fail(f"container: expected a container's name, got {say(container)}")
    _fewest, wanted = needed(recipe, overrides or {}, len(nodes), fail)
    if wanted > len(nodes):
        have = f"{len(nodes)}" if nodes else "none"
        fail(
            f"{recipe.title} needs {wanted} Spark{'s' if wanted > 1 else ''}; this cluster has {have}.",
            "too_few_sparks",
        )
    for node in nodes[:wanted]:
        if not ADDRESS.fullmatch(node["address"]):
            fail(f"nodes: expected an address, got {say(node['address'])}")
    used = [{"host": node["host"], "address": node["address"]} for node in nodes[:wanted]]
    mode = "solo" if wanted == 1 else "cluster"
    mounts = _mounts(recipe.model, fail)
    launch = compose(recipe, mode, wanted, int(port), host, overrides or {}, fail)
    script = launch.script
    if script is None and not all(CARRIED.fullmatch(value) for value in recipe.env.values()):
        script = launch.as_script
    if script is not None:
        exports = [f"export {name}={quote(value)}" for name, value in recipe.env.items()]
        script = "\n".join(["#!/bin/bash", *exports, script]) + "\n"
    plan = {
        "model": recipe.name,
        "title": recipe.title,
        "description": recipe.description,
        "source": recipe.source,
        "recipe_version": recipe.version,
        "repo": recipe.repo,
        "revision": recipe.revision,
        "served_name": launch.served_name,
        "image": recipe.image,
        "mode": mode,
        "nodes": used,
        "env": dict(recipe.env),
        "mods": list(recipe.mods),
        "argv": launch.argv if script is None else None,
        "script": script,
        "port": int(port),
        "container": container,
        "mounts": mounts,
        "tensor_parallel": launch.parallel[0],
        "pipeline_parallel": launch.parallel[1],
        "vision": vision(launch.flags, recipe.metadata, recipe.repo),
        "quantization": quantization(launch.flags, recipe.metadata, recipe.repo),
        "memory": memory(launch.flags, recipe.metadata),
        "warnings": [*recipe.warnings, *launch.warnings],
    }
    return plan | {"digest": digest(plan)}


def weights_of(plan: dict) -> list[dict]:
    """What a plan needs on the disks of its nodes: [{repo (or a local model's path), revision}], its draft included."""
    found = [{"repo": plan["repo"], "revision": plan["revision"]}] if plan["repo"] else []
    found += [{"repo": mount["source"], "revision": None} for mount in plan["mounts"]]
    draft = plan["memory"].get("draft_model")
    return found + ([{"repo": draft, "revision": None}] if draft else [])


def digest(plan: dict) -> str:
    """sha256 over all that changes a launch, and nothing else: the same digest serves the same thing the same way."""
    keys = ("image", "mode", "env", "mods", "argv", "script", "port", "container")
    if plan.get("mounts"):  # added later: a launch without one keeps the digest that its container carries
        keys += ("mounts",)
    launch = {key: plan[key] for key in keys} | {"nodes": [node["address"] for node in plan["nodes"]]}
    text = json.dumps(launch, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _mounts(model, fail):
    """[{source, target, read_only}] for a model that is a folder of the Sparks: the container sees it at its own path.

    Such a path goes through two shells and docker's own colons, so it is refused rather than quoted.
    """
    if not (model or "").startswith("/"):
        return []
    if not MOUNT.fullmatch(model) or os.path.normpath(model) != model or ".." in model.split("/"):
        fail(
            "model: expected a folder's whole path of letters, digits and _./=+@%- (no space, comma, colon or ..),"
            f" got {say(model)}"
        )
    if model.split("/")[1] in _NOT_MOUNTED or model in _OCCUPIED:
        fail(f"model: expected a folder of models, got {say(model)}, which a container has itself")
    return [{"source": model, "target": model, "read_only": True}]


_NOT_MOUNTED = {"bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "usr"}
_OCCUPIED = {"/home", "/mnt", "/media", "/opt", "/root", "/srv", "/tmp", "/var", "/workspace"}
_PLACEMENT = ("nodes", "repo", "tensor_parallel", "pipeline_parallel", "memory", "digest", "mounts")


def listing(dirs, nodes=(), port: int = 8888) -> list[dict]:
    """What the page lists: one entry a recipe file, with `error` set for one that cannot be used.

    `placement` is what says whether it fits: the plan's nodes, parallel sizes and memory, None without enough nodes.

    nodes: the vllm group; `mode` is what the recipe gets on it, or on a larger one where it needs more.
    """
    return [_entry(item, list(nodes), port) for item in load_all(dirs)]


def _entry(item, nodes, port):
    entry = {
        "name": item.name, "title": item.name, "description": "", "repo": None, "revision": None, "served_name": None,
        "image": None, "mode": None, "min_nodes": None, "max_nodes": None, "vision": False, "quantization": None,
        "source": item.source, "error": None, "placement": None,
    }  # fmt: skip
    if isinstance(item, RecipeError):
        return entry | item.known | {"error": str(item)}
    try:
        fewest, most = needed(item, {}, len(_MANY), _no_fault)
        plan = render(item, nodes if len(nodes) >= fewest else _MANY, port)
    except RecipeError as error:
        return entry | {"title": item.title, "description": item.description, "error": str(error)}
    if len(nodes) >= fewest:
        entry["placement"] = {key: plan[key] for key in _PLACEMENT}
    return entry | {key: plan[key] for key in entry if key in plan} | {"min_nodes": fewest, "max_nodes": most}


def _no_fault(message):
    raise RecipeError(message)


def _read(path):
    """The YAML of a regular file of bounded size that does not lead out of its folder."""
    folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    if os.path.dirname(os.path.realpath(path)) != folder:
        raise ValueError("expected a file of this folder, got a link that leads out of it")
    # O_NONBLOCK: a named pipe must not hold up the list.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("expected a regular file")
        raw = file.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise ValueError(f"expected at most {LARGEST // 1024} kB, got a larger file")
    text = raw.decode("utf-8-sig")
    # A few lines of aliases to aliases can stand for gigabytes.
    if "*" in text and sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Loader)) > 20:
        raise ValueError("expected at most 20 YAML aliases")
    return yaml.load(text, Loader=_Loader)


def _plainly(error):
    if isinstance(error, UnicodeDecodeError):
        return f"expected UTF-8 text, got byte 0x{error.object[error.start]:02x} at {error.start}"
    if isinstance(error, OSError):
        return f"expected a readable file: {error.strerror}"
    if isinstance(error, RecursionError):
        return "expected YAML of a few levels, got one nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"expected YAML, got {error.problem} in line {mark.line + 1}, column {mark.column + 1}"
    text = " ".join(str(error).split())
    return text if text.startswith("expected ") else f"expected YAML, got {text}"
