"""Turn a plan into the call of launch-cluster.sh that carries it, for the launcher that a Spark has.

Runs on the Spark: Python standard library only. Two launchers exist in the field and they carry a command differently:
the one of 2026-09 joins its words with `printf %q`, the one of 2026-01 joins them with spaces and lets bash read them
again. Either way the far side gets the plan's words, each as one literal.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Both launchers keep `-e` and VLLM_SPARK_EXTRA_DOCKER_ARGS in one unquoted string that bash splits and an ssh shell
# reads again, so only characters that mean themselves may go there.
CARRIED = re.compile(r"[A-Za-z0-9_./:=,+@%-]*")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
IMAGE = re.compile(
    r"(?:(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]*")
# A folder that docker mounts: docker splits such an argument at colons, so a path has none.
MOUNT = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9_.=+@%-]+)+")
MOD = re.compile(r"(?!-)[A-Za-z0-9_.+-]+(?:/[A-Za-z0-9_.+-]+)*")
EXTRA = "VLLM_SPARK_EXTRA_DOCKER_ARGS"
RAY = ["--distributed-executor-backend", "ray"]


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


def launcher_exec_args(plan, launcher, container=None, docker_args=(), environment=None, script_path="@script@"):
    """Return the LauncherCall for a plan.

    plan: what `recipe_plan` returns. launcher: {"solo", "launch_script", "env", "daemon_exec"}: which of `--solo`,
    `--launch-script`, `-e` and `-d` with `exec` this launcher has; optional "quotes_exec": whether it joins the words
    of `exec` with `printf %q` (default: as `launch_script`). container: default is the plan's. docker_args: words
    for `docker run`, such as ["--label", "spark-control.digest=sha256:…"]. environment: the process's own, whose
    VLLM_SPARK_EXTRA_DOCKER_ARGS is kept. script_path: where the caller writes the script. Mods are paths relative to
    the launcher's folder: call it from there. Raises CannotCarry.
    """
    container = container or plan["container"]
    _must(CONTAINER, container, "container name")
    _must(IMAGE, plan["image"], "image")
    nodes = [node["address"] for node in plan["nodes"]]
    for address in nodes:
        _must(ADDRESS, address, "node address")
    cluster = plan["mode"] == "cluster"
    september = bool(launcher.get("launch_script"))
    joins_with_q = bool(launcher.get("quotes_exec", september))

    argv = ["-t", plan["image"], "--name", container]
    if cluster:
        argv += ["-n", ",".join(nodes)]
    else:
        argv += ["--solo"] if launcher.get("solo") else ["-n", nodes[0]]
    for mod in plan.get("mods") or []:
        if not MOD.fullmatch(mod) or ".." in mod.split("/"):
            raise CannotCarry(f"mod {mod!r}: expected a path below the launcher's folder, without ..")
        argv += ["--apply-mod", mod]

    extra = []
    for name, value in (plan.get("env") or {}).items():
        _must(ENV_NAME, name, "environment name")
        if not CARRIED.fullmatch(value):
            if plan.get("script") is None:
                raise CannotCarry(f"env {name}: its value needs a script")
            continue  # the script exports it
        if launcher.get("env"):
            argv += ["-e", f"{name}={value}"]
        else:
            extra += ["-e", f"{name}={value}"]
    for mount in plan.get("mounts") or []:
        for side in ("source", "target"):
            if not isinstance(mount[side], str) or not MOUNT.fullmatch(mount[side]):
                raise CannotCarry(f"mount {mount[side]!r}: expected a folder's whole path, without .. and colons")
        extra += ["-v", f"{mount['source']}:{mount['target']}" + (":ro" if mount["read_only"] else "")]
    for word in docker_args:
        if not word or not CARRIED.fullmatch(word):
            raise CannotCarry(f"docker argument {word!r}: only letters, digits and _./:=,+@%- survive the launcher")
        extra.append(word)
    kept = (environment or {}).get(EXTRA, "")
    added = {EXTRA: " ".join([kept, *extra] if kept else extra)} if extra else {}

    script, words = plan.get("script"), plan.get("argv")
    if (script is None) == (words is None):
        raise CannotCarry("the plan needs exactly one of argv and script")
    if "\0" in (script or "".join(words)):
        raise CannotCarry("a NUL byte cannot be part of a command")
    # Before 2026-09 a cluster is a Ray cluster, and vLLM has to be told so; since then the launcher adds its own.
    if cluster and not september:
        words = words and [*words, *RAY]
        script = script and script.rstrip("\n") + " " + " ".join(RAY) + "\n"

    detached = bool(launcher.get("daemon_exec"))
    if detached:
        argv.append("-d")
    if script is None:
        return LauncherCall([*argv, "exec", *_exec_words(words, joins_with_q)], added, None, detached)
    if september:
        return LauncherCall([*argv, "--launch-script", script_path], added, script, detached)
    return LauncherCall([*argv, "exec", *_exec_words(["bash", "-c", script], joins_with_q)], added, None, detached)


def quote(value: str) -> str:
    """One word of bash that is this value, on one line, so that a launcher that edits lines leaves it whole."""
    if value and CARRIED.fullmatch(value):
        return value
    return "'" + value.replace("'", "'\\''").replace("\n", "'$'\\n''") + "'"


def _exec_words(words, joins_with_q):
    return list(words) if joins_with_q else [" ".join(quote(word) for word in words)]


def _must(pattern, value, what):
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise CannotCarry(f"{what} {value!r} is not one that the launcher can carry")
