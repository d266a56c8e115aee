"""The fields of a launch recipe in both formats: their types, what is missing, and what is refused by name.

v1 is eugr's (the docstring of its run-recipe.py), v2 sparkrun's (its RECIPES.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .spark_launch_args import ENV_NAME, IMAGE, MOD
from .spark_recipe_command import build, template
from .spark_recipe_memory import count, dtype_bytes, number, whole

REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY)($|_)", re.IGNORECASE)
_EXPANSION = re.compile(r"\$[A-Za-z_{(]|`")
_WHOLE = ("port", "tensor_parallel", "pipeline_parallel", "data_parallel", "max_num_seqs", "max_num_batched_tokens")
_HOOKS = ("pre_exec", "post_exec", "post_commands")
# Fields of either format that say something a launch needs nothing of, or that this house decides itself.
_QUIET = {
    "recipe_version", "sparkrun_version", "name", "description", "model", "model_revision", "runtime",
    "runtime_version", "mode", "min_nodes", "max_nodes", "container", "defaults", "env", "command", "cluster_only",
    "solo_only", "benchmark", "metadata", "mods", "build_args", "pull_image", "builder", "builder_config",
    "distribution_config", "maintainer", "stop_after_post", *_HOOKS,
}  # fmt: skip


class RecipeError(Exception):
    """What is wrong with a recipe, one message a fault. reason: broken_recipe, unknown_model or too_few_sparks."""

    def __init__(self, messages, reason="broken_recipe", name="", source="", runtime=None, known=None):
        self.messages = [messages] if isinstance(messages, str) else list(messages)
        self.reason, self.name, self.source, self.runtime = reason, name, source, runtime
        self.known = known or {}  # what could be read of it all the same: title, description, repo, image
        super().__init__("; ".join(self.messages))


@dataclass(frozen=True)
class Recipe:
    """A recipe file whose fields are all of the right type. version is "1" or "2"; label is how messages name it."""

    name: str
    title: str
    description: str
    source: str
    label: str
    version: str
    repo: str | None
    model: str | None
    revision: str | None
    image: str
    mods: tuple[str, ...]
    env: dict[str, str]
    defaults: dict
    units: tuple
    min_nodes: int
    max_nodes: int | None
    metadata: dict
    warnings: tuple[str, ...] = field(default=())


def say(value) -> str:
    """A value as a message shows it: short, and on one line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def known_of(data, stem):
    """What the list can show of a recipe that cannot be used."""
    metadata = data.get("metadata") if isinstance(data.get("metadata"), dict) else {}
    texts = {
        "title": data.get("name") or stem,
        "description": data.get("description") or metadata.get("description") or "",
        "repo": data.get("model"),
        "image": data.get("container"),
    }
    known = {key: " ".join(value.split()) for key, value in texts.items() if isinstance(value, str) and value}
    for key, right in (("repo", REPO), ("image", IMAGE)):  # a probe asks docker and the cache for them
        if not right.fullmatch(known.get(key, "")):
            known.pop(key, None)
    return known


# The first words of other runtimes' commands (sparkrun's own table), and GGUF's repo:quantization model names.
_COMMANDS = (
    (re.compile(r"sglang\s+serve\b|python3?\s+-m\s+sglang\b"), "sglang"),
    (re.compile(r"llama-server\b"), "llama-cpp"),
    (re.compile(r"trtllm-serve\b|mpirun\b.*trtllm"), "trtllm"),
    (re.compile(r"atlas\s+serve\b"), "atlas"),
    (re.compile(r"ds4-serve\b"), "ds4"),
)


def other_runtime(data):
    runtime = data.get("runtime")
    if isinstance(runtime, str) and runtime and runtime not in ("vllm", "vllm-distributed", "vllm-ray", "eugr-vllm"):
        return runtime
    command = data.get("command")
    if isinstance(command, str) and not runtime:
        for pattern, name in _COMMANDS:
            if pattern.match(command.strip()):
                return name
    model = data.get("model")
    if isinstance(model, str) and re.fullmatch(r"[^:\s]+/[^:\s]+:[A-Za-z0-9_.-]+", model):
        return f"llama-cpp (model {model[:80]} is a GGUF file)"
    return None


class Faults(list):
    def expect(self, where, expected, value):
        self.append(f"{where}: expected {expected}, got {say(value)}")


def _text(data, key, faults, required=False, where=None, loose=False):
    value = data.get(key)
    if value is None or value == "":
        if required:
            faults.append(f"{where or key}: expected text, the field is missing")
        return None
    if loose and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        faults.expect(where or key, "text", value)
        return None
    if "\0" in value or any(0xD800 <= ord(c) < 0xE000 for c in value):
        faults.append(f"{where or key}: expected text without NUL bytes or broken characters")
        return None
    return value


def _mapping(data, key, faults):
    value = data.get(key)
    if value is None or value == []:  # `env: []` is how some authors write that there is none
        return {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        faults.expect(key, "a mapping", value)
        return {}
    return value


def _number(data, key, faults, where, least=0):
    value = data.get(key)
    if value is None:
        return None
    parsed = None if isinstance(value, bool) else whole(str(value))
    if parsed is None or not least <= parsed < 10**9:
        faults.expect(where, "a whole number" + (f" of at least {least}" if least else ""), value)
        return None
    return parsed


def _flag(data, key, faults):
    value = data.get(key)
    if value is not None and not isinstance(value, bool):
        faults.expect(key, "true or false", value)
    return value is True


def parse(data, path, stem, label, faults):
    version = _version(data, faults)
    first_format = version == "1"
    metadata = _mapping(data, "metadata", faults)
    _check_metadata(metadata, faults)
    if first_format:
        _text(data, "name", faults, required=True)
    model = _text(data, "model", faults, required=not first_format)
    container = _text(data, "container", faults, required=first_format)
    warnings = [f"{label}: {key}: is not used here" for key in data if key not in _QUIET]
    if str(data.get("recipe_version", version)) not in ("1", "2"):
        warnings.append(f"{label}: recipe_version: {data['recipe_version']} is read as 2")
    if container is None and not first_format:
        container = "vllm-node"
        warnings.append(f"{label}: container: is missing, vllm-node is used")
    if container is not None and not IMAGE.fullmatch(container.strip()):
        faults.expect("container", "a docker image such as vllm-node or name/image:tag", container)
    title = _text(data, "name", faults) or stem
    description = _text(data, "description", faults) or _text(
        metadata, "description", faults, where="metadata.description"
    )
    lowest, highest = _topology(data, faults)
    for hook in _HOOKS:
        if data.get(hook):
            faults.append(f"{hook}: expected nothing, commands beside the launch are not run here; use a mod")
    if data.get("stop_after_post"):
        faults.append("stop_after_post: expected nothing, a model is stopped by a swap or the stop button")
    defaults = _defaults(data, faults)
    mods = _mods(data, faults)
    env = _env(data, faults)
    command = _text(data, "command", faults, required=first_format)
    units = ()
    if command is not None:
        units = template(command, version, defaults, faults, warnings, label)
    elif not first_format and model:
        units = build(model, defaults, warnings, label)
    return Recipe(
        name=stem,
        title=" ".join(title.split()),
        description=" ".join((description or "").split()),
        source=path,
        label=label,
        version=version,
        repo=model if model and REPO.fullmatch(model) else None,
        model=model,
        revision=_text(data, "model_revision", faults, loose=True),
        image=(container or "").strip(),
        mods=mods,
        env=env,
        defaults=defaults,
        units=tuple(units),
        min_nodes=lowest,
        max_nodes=highest,
        metadata=metadata,
        warnings=tuple(warnings),
    )


def _version(data, faults):
    """The format, "1" or "2". Unsaid, `build_args` or `mods` without a `runtime` mean the first, as for sparkrun."""
    value = data.get("recipe_version", data.get("sparkrun_version"))
    if value is None:
        return "1" if ("build_args" in data or "mods" in data) and "runtime" not in data else "2"
    if (
        isinstance(value, bool)
        or not isinstance(value, (str, int, float))
        or not re.fullmatch(r"\d+(\.\d+)?", str(value))
    ):
        faults.expect("recipe_version", '"1" or "2"', value)
        return "2"
    return "1" if str(value) in ("1", "1.0") else "2"


def _check_metadata(metadata, faults):
    checks = {
        "model_params": ("a count such as 8B", lambda v: count(v) is not None),
        "model_vram": ("a number of GB", lambda v: number(v) is not None),
        "kv_vram_per_token": ("a number of GB", lambda v: number(v) is not None),
        "num_layers": ("a whole number", lambda v: whole(v) is not None),
        "num_kv_heads": ("a whole number", lambda v: whole(v) is not None),
        "head_dim": ("a whole number", lambda v: whole(v) is not None),
        "vision": ("true or false", lambda v: isinstance(v, bool)),
    }
    for key, (expected, right) in checks.items():
        value = metadata.get(key)
        if value is not None and (isinstance(value, bool) != (key == "vision") or not right(value)):
            faults.expect(f"metadata.{key}", expected, value)
    dtype = metadata.get("model_dtype")
    if dtype is not None and not isinstance(dtype, str):
        faults.expect("metadata.model_dtype", "a dtype such as fp8", dtype)
    elif dtype is not None and dtype_bytes(dtype) is None:
        metadata.pop("model_dtype")


def _topology(data, faults):
    """(fewest, most) Sparks as the fields say it; most is None for no limit."""
    lowest = _number(data, "min_nodes", faults, "min_nodes", least=1) or 1
    highest = _number(data, "max_nodes", faults, "max_nodes", least=1)
    mode = data.get("mode", "auto")
    if mode not in ("auto", "solo", "cluster"):
        faults.expect("mode", "auto, solo or cluster", mode)
    solo, cluster = _flag(data, "solo_only", faults), _flag(data, "cluster_only", faults)
    if solo and cluster:
        faults.append("solo_only: expected false, cluster_only is true too")
    if solo or mode == "solo":
        lowest, highest = 1, 1
    elif cluster or mode == "cluster":
        lowest = max(lowest, 2)
    if highest is not None and highest < lowest:
        faults.append(f"max_nodes: expected at least {lowest}, got {highest}")
    return lowest, highest


def _defaults(data, faults):
    defaults = _mapping(data, "defaults", faults)
    for key in _WHOLE:
        if key in defaults:
            _number(defaults, key, faults, f"defaults.{key}", least=0 if key.startswith("max") else 1)
    share = defaults.get("gpu_memory_utilization")
    # Not at most 1: some recipes put it behind --gpu-memory-utilization-gb.
    if share is not None and (isinstance(share, bool) or not number(share)):
        faults.expect("defaults.gpu_memory_utilization", "a number above 0", share)
    length = defaults.get("max_model_len")
    if length is not None and (
        isinstance(length, bool) or (str(length) not in ("auto", "-1") and whole(length, multiples=True) is None)
    ):
        faults.expect("defaults.max_model_len", "a number of tokens or auto", length)
    for key, value in defaults.items():
        if isinstance(value, str):
            _text(defaults, key, faults, where=f"defaults.{key}")
    return defaults


def _mods(data, faults):
    mods = data.get("mods") or []
    if not isinstance(mods, list):
        faults.expect("mods", "a list of folders", mods)
        return ()
    for mod in mods:
        if not isinstance(mod, str) or not MOD.fullmatch(mod) or ".." in mod.split("/"):
            faults.expect("mods", "paths below the launcher's folder, such as mods/fix-x", mod)
    return tuple(mod for mod in mods if isinstance(mod, str))


def _env(data, faults):
    env = {}
    for name, value in _mapping(data, "env", faults).items():
        where = f"env.{name}"
        if not ENV_NAME.fullmatch(name):
            faults.append(f"env: expected a name of letters, digits and underscores, got {say(name)}")
        elif _SECRET.search(name):
            faults.append(f"{where}: expected no secret in a recipe; it belongs in the secret file")
        elif value is None or isinstance(value, (dict, list)):
            faults.expect(where, "text or a number", value)
        elif isinstance(value, str) and _EXPANSION.search(value):
            # v1 expands in the container and v2 on the machine of whoever starts it: a plan must not depend on either.
            faults.append(f"{where}: expected the value itself, got {say(value)}; nothing is expanded here")
        elif not isinstance(value, str) or _text({"v": value}, "v", faults, where=where) is not None or value == "":
            env[name] = str(value)
    return env
