"""The shapes of launch-cluster.sh that Sparks have: how one is told, and how each carries a plan.

Three exist in the field, named for when they came in 2026. They carry a command differently: since September its words
are joined with `printf %q`, January's joins them with spaces and lets bash read them again. Either way the far side
gets the plan's words, each as one literal. Runs on the Spark and on the controller: Python standard library only.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from typing import ClassVar, NamedTuple

from .spark_launch_args import ADDRESS, CARRIED, CONTAINER, ENV_NAME, IMAGE, MOD, MOUNT, quote

EXTRA = "VLLM_SPARK_EXTRA_DOCKER_ARGS"


class CannotCarry(ValueError):
    """The launcher cannot carry this plan; the message names the part and says why."""


class LauncherCall(NamedTuple):
    """How to call the launcher.

    argv: what follows `launch-cluster.sh`. environment: to add to the process's own. script: None, or the text to write
    to the path that argv names, before the call. detached: whether the launcher returns by itself.
    """

    argv: list[str]
    environment: dict[str, str]
    script: str | None
    detached: bool


class Launcher:
    """What every shape has in common; a subclass says what is its own."""

    shape: ClassVar[str]
    detached: ClassVar[bool]
    # It compares the nodes' images by content rather than by id.
    by_content: ClassVar[bool] = False
    # It reads `.env` beside itself, and takes LOCAL_IP from it for a launch on one node too.
    settings: ClassVar[bool] = True
    heeds_local_ip_alone: ClassVar[bool] = True

    def call(
        self,
        plan: Mapping,
        container: str | None = None,
        docker_args: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
        script_path: str = "@script@",
        ring: Iterable[str] = (),
    ) -> LauncherCall:
        """How to call it for a plan, which is what `recipe_plan` returns.

        container: default is the plan's. docker_args: words for `docker run`, such as ["--label",
        "spark-control.digest=sha256:…"]. environment: the process's own, whose VLLM_SPARK_EXTRA_DOCKER_ARGS is kept.
        script_path: where the caller writes the script. ring: as `look` told it. Mods are paths relative to the
        launcher's folder: call it from there. Raises CannotCarry.
        """
        container = container or plan["container"]
        _must(CONTAINER, container, "container name")
        _must(IMAGE, plan["image"], "image")
        nodes = in_ring_order([node["address"] for node in plan["nodes"]], list(ring))
        for address in nodes:
            _must(ADDRESS, address, "node address")
        argv = ["-t", plan["image"], "--name", container, *self.where(nodes, plan["mode"] == "cluster")]
        for mod in plan.get("mods") or []:
            if not MOD.fullmatch(mod) or ".." in mod.split("/"):
                raise CannotCarry(f"mod {mod!r}: expected a path below the launcher's folder, without ..")
            argv += ["--apply-mod", mod]
        variables = [word for pair in _variables(plan) for word in ("-e", pair)]
        flags, extra = self.with_variables(variables)
        extra += [*_mounts(plan), *_docker_words(docker_args)]
        kept = (environment or {}).get(EXTRA, "")
        added = {EXTRA: " ".join([kept, *extra] if kept else extra)} if extra else {}
        _must_be_one(plan)
        command, script = self.command(plan, script_path)
        return LauncherCall([*argv, *flags, *command], added, script, self.detached)

    def where(self, nodes: list[str], cluster: bool) -> list[str]:
        """The words that say on which nodes."""
        raise NotImplementedError

    def with_variables(self, words: list[str]) -> tuple[list[str], list[str]]:
        """How `-e NAME=value …` is given: (words for the launcher, words for its `docker run`)."""
        raise NotImplementedError

    def command(self, plan: Mapping, script_path: str) -> tuple[list[str], str | None]:
        """The words for what is to run, which come last, and the script that they name, if they do."""
        raise NotImplementedError


class January(Launcher):
    """Stays in the foreground for as long as the model runs. No `--solo`, `--launch-script`, `-e`, `-v` or `.env`."""

    shape = "january"
    detached = False
    settings = False
    # A cluster is a Ray cluster, and vLLM has to be told so; since then the launcher adds its own backend.
    RAY: ClassVar = ["--distributed-executor-backend", "ray"]

    def where(self, nodes, cluster):
        """Solo is `-n` with one address."""
        return ["-n", ",".join(nodes if cluster else nodes[:1])]

    def with_variables(self, words):
        """In the environment's words for docker."""
        return [], list(words)

    def command(self, plan, script_path):
        """`exec` with one word, which bash reads again; a script is such a word too."""
        ray = self.RAY if plan["mode"] == "cluster" else []
        if plan.get("script") is None:
            words = [*plan["argv"], *ray]
        else:
            script = plan["script"]
            words = ["bash", "-c", script.rstrip("\n") + " " + " ".join(ray) + "\n" if ray else script]
        return ["exec", " ".join(quote(word) for word in words)], None


class September(Launcher):
    """Ends once its command is dispatched; keeps the words of `exec`, and takes a script as a file."""

    shape = "september"
    detached = True

    def where(self, nodes, cluster):
        """One node is `--solo`."""
        return ["-n", ",".join(nodes)] if cluster else ["--solo"]

    def with_variables(self, words):
        """`-e` is its own."""
        return list(words), []

    def command(self, plan, script_path):
        """`exec` keeps each word."""
        if plan.get("script") is None:
            return ["-d", "exec", *plan["argv"]], None
        return ["-d", "--launch-script", script_path], plan["script"]


class October(September):
    """Launches as September's does, and compares images by content."""

    shape = "october"
    by_content = True
    heeds_local_ip_alone = False  # there it is always 127.0.0.1


SHAPES = {kind.shape: kind() for kind in (January, September, October)}


def in_ring_order(nodes: list[str], ring: list[str]) -> list[str]:
    """The addresses in the order of their cables, the head still first; those that the ring does not name come last."""
    if nodes[0] not in ring:
        return nodes
    turn = ring.index(nodes[0])
    order = ring[turn:] + ring[:turn]
    return sorted(nodes, key=lambda node: order.index(node) if node in order else len(order))


def shape_of(found: Mapping | None) -> Launcher:
    """The shape that a look found. Raises CannotCarry where there is none."""
    shape = (found or {}).get("shape")
    if shape not in SHAPES:
        raise CannotCarry("there is no launcher of a known shape")
    return SHAPES[shape]


def look(folder: str) -> dict:
    """Which launch-cluster.sh stands in FOLDER: {path, present, shape, checks, dot_env}; shape is None without one.

    It is told by what its --help offers (it exits 1 after printing it); `checks`: whether that has --check-config.
    `dot_env`: what its own settings say that may stand in a launch's way, {broken: why the launcher would not read
    them, or None, container: a name that wins over --name, or None, local_ip: the head's address, or None, ring: the
    nodes' addresses in the order of their cables where CLUSTER_LINKS tells these, spaced: the variables for the
    container whose value has a space, at which the launcher splits it}.
    """
    path = os.path.join(os.path.expanduser(folder), "launch-cluster.sh")
    found = {"path": path, "present": False, "shape": None, "checks": False, "dot_env": _settings("")}
    try:
        done = subprocess.run([path, "--help"], capture_output=True, stdin=subprocess.DEVNULL, timeout=15, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return found
    offers = (done.stdout + done.stderr).decode(errors="replace")
    if "exec" not in offers:
        return found
    kind = January
    if "--launch-script" in offers:
        kind = October if b"matching image content" in _start(path) else September
    if kind.settings:
        text = _start(os.path.join(os.path.dirname(path), ".env")).decode(errors="replace")
        found["dot_env"] = _settings(text)
    return found | {"present": True, "shape": kind.shape, "checks": "--check-config" in offers}


def _variables(plan: Mapping) -> list[str]:
    """NAME=value of what the launcher carries; the script exports the others."""
    pairs = []
    for name, value in (plan.get("env") or {}).items():
        _must(ENV_NAME, name, "environment name")
        if CARRIED.fullmatch(value):
            pairs.append(f"{name}={value}")
        elif plan.get("script") is None:
            raise CannotCarry(f"env {name}: its value needs a script")
    return pairs


def _mounts(plan: Mapping) -> list[str]:
    words = []
    for mount in plan.get("mounts") or []:
        for side in ("source", "target"):
            if not isinstance(mount[side], str) or not MOUNT.fullmatch(mount[side]):
                raise CannotCarry(f"mount {mount[side]!r}: expected a folder's whole path, without .. and colons")
        words += ["-v", f"{mount['source']}:{mount['target']}" + (":ro" if mount["read_only"] else "")]
    return words


def _docker_words(words: Iterable[str]) -> list[str]:
    for word in words:
        if not word or not CARRIED.fullmatch(word):
            raise CannotCarry(f"docker argument {word!r}: only letters, digits and _./:=,+@%- survive the launcher")
    return list(words)


def _must_be_one(plan: Mapping) -> None:
    """Raise CannotCarry unless the plan has one command that can be one."""
    script, words = plan.get("script"), plan.get("argv")
    if (script is None) == (words is None):
        raise CannotCarry("the plan needs exactly one of argv and script")
    if "\0" in (script or "".join(words)):
        raise CannotCarry("a NUL byte cannot be part of a command")


def _must(pattern: re.Pattern, value: object, what: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise CannotCarry(f"{what} {value!r} is not one that the launcher can carry")


def _settings(text: str) -> dict:
    """What `look` tells of a .env, by the launcher's own rules: KEY=value a line, no key twice."""
    told, broken = {}, None
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        key, value = key.strip(), value.strip()
        if not equals:
            broken = broken or f"line {number} has no equals sign"
        elif not ENV_NAME.fullmatch(key):
            broken = broken or f"line {number} begins with what is no name"
        elif key in told:
            broken = broken or f"line {number} sets {key} a second time"
        else:
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
            told[key] = value[1:-1] if quoted else value
    name, address = told.pop("CONTAINER_NAME", None), told.get("LOCAL_IP")
    ring = re.split(r"[,\s]+", told.get("CLUSTER_NODES", "").strip(", ")) if told.get("CLUSTER_LINKS") else []
    spaced = [key for key, value in told.items() if key.startswith("CONTAINER_") and re.search(r"\s", value)]
    return {"broken": broken, "container": name or None, "local_ip": address or None, "ring": ring, "spaced": spaced}


def _start(path: str) -> bytes:
    """A file's first megabyte; nothing where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20)
    except OSError:
        return b""
