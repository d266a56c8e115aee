"""Ask a Spark's docker about containers and images, through its own command line."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime

LABEL_DIGEST = "spark-control.digest"
LABEL_MODEL = "spark-control.model"


class DockerError(Exception):
    """docker could not answer; the text is what it said, in one line."""


def docker(*args: str, timeout: float = 20.0) -> subprocess.CompletedProcess:
    """Run `docker ARGS…` without a shell. Raises DockerError where docker is missing, hangs, or has no daemon."""
    try:
        done = subprocess.run(
            ["docker", *args], capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False
        )
    except FileNotFoundError:
        raise DockerError("docker is not installed, or not on the PATH") from None
    except subprocess.TimeoutExpired:
        raise DockerError(f"docker did not answer within {timeout:.0f} s") from None
    said = done.stderr.decode(errors="replace")
    if done.returncode and re.search(r"cannot connect|permission denied|is the docker daemon running", said, re.I):
        raise DockerError(" ".join(said.split()))
    return done


def container(name: str) -> dict | None:
    """What docker knows of the container NAME, or None where there is none.

    Returns {id, name, running, image, image_id, started_at (epoch seconds), labels}.
    """
    done = docker("inspect", "--type", "container", name)
    if done.returncode:
        if b"no such" in done.stderr.lower():
            return None
        raise DockerError(" ".join(done.stderr.decode(errors="replace").split()))
    found = json.loads(done.stdout)[0]
    return {
        "id": found["Id"],
        "name": found["Name"].lstrip("/"),
        "running": bool(found["State"]["Running"]),
        "image": found["Config"]["Image"],
        "image_id": found["Image"],
        "started_at": epoch(found["State"]["StartedAt"]),
        "labels": found["Config"].get("Labels") or {},
    }


def image(name: str) -> dict | None:
    """What docker knows of the local image NAME, or None where it is not there: {id, content}.

    The id of one and the same image is another in docker's own store than in containerd's; `content`, a sum over its
    platform, layers and settings, is not.
    """
    done = docker("image", "inspect", name)
    if done.returncode:
        return None
    found = json.loads(done.stdout)[0]
    told = {key: found.get(key) or "" for key in ("Os", "Architecture", "Variant")}
    # Which settings are told although they are empty differs between dockers.
    told["Config"] = {key: value for key, value in (found.get("Config") or {}).items() if value}
    told["RootFS"] = found.get("RootFS")
    content = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return {"id": found["Id"], "content": f"sha256:{content}"}


def is_of(plan: Mapping, container: Mapping | None, images: Mapping) -> bool:
    """Whether a container was started by this very plan, from the image that has its name today ({name: id})."""
    made = container or {}
    from_plan = made.get("labels", {}).get(LABEL_DIGEST) == plan["digest"]
    return from_plan and made["image_id"] == images.get(plan["image"])


def processes(name: str) -> list[dict]:
    """The processes in the container NAME: [{pid (the host's), args}]; none where it is gone."""
    done = docker("top", name, "-eo", "pid,args")
    return [] if done.returncode else rows(done.stdout)


def rows(top: bytes) -> list[dict]:
    """The same, out of what `docker top NAME -eo pid,args` printed, here or on another host."""
    found = [line.split(None, 1) for line in top.decode(errors="replace").splitlines()[1:]]
    return [{"pid": int(row[0]), "args": row[1] if len(row) > 1 else ""} for row in found if row]


def running() -> list[str]:
    """The names of the containers that run."""
    return docker("ps", "--format", "{{.Names}}").stdout.decode(errors="replace").split()


# What keeps a container open without serving anything: launch-cluster.sh's PID 1 (with --earlyoom a shell until that is
# installed), and a shell around the server.
_IDLE = re.compile(
    r"^(\S*/)?(sleep|tail|earlyoom|tini|docker-init)\b|^(\S*/)?(bash|sh)( -\w+)*$|^(\S*/)?bash -c .* earlyoom\b"
)
# Ray's own processes (the January launcher's cluster): they are there before vLLM and stay when it has died.
_RAY_NODE = re.compile(
    r"^(\S+ (-\S+ )*)?(\S*/)?ray start\b|^ray::IDLE|^\S*/ray/core/"
    r"|^\S*python\S*( -\S+)* \S*/ray/(_private|dashboard|autoscaler)/"
)
_RAY_QUESTION = re.compile(r"^(\S+ (-\S+ )*)?(\S*/)?ray (status|stop)\b")


def serving_processes(name: str) -> list[dict]:
    """The container's processes that do work: a container can be Up with its server dead."""
    return working(processes(name))


def working(found: list[dict]) -> list[dict]:
    """Those of some processes that do work."""
    idle = (_IDLE, _RAY_NODE, _RAY_QUESTION)
    return [process for process in found if not any(kind.match(process["args"]) for kind in idle)]


def ray_node(found: list[dict]) -> bool:
    """Whether a Ray node runs among these processes; on a worker, that is all there is until the head hands it work."""
    return any(_RAY_NODE.match(process["args"]) for process in found)


def logs(name: str, tail: int | None = None) -> bytes:
    """The container's log, both streams in order, at most the last `tail` lines."""
    command = ["docker", "logs", *(["--tail", str(tail)] if tail else []), name]
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise DockerError(f"docker logs did not answer: {error}") from None
    return b"" if done.returncode else done.stdout


def epoch(stamp: str) -> float:
    """Docker's RFC 3339 time with nanoseconds, as seconds since 1970; 0 where it is not one."""
    found = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,6})?\d*(Z|[+-]\d\d:\d\d)$", stamp)
    if not found:
        return 0.0
    moment = datetime.fromisoformat(found[1] + (found[2] or ".0").ljust(7, "0"))
    zone = UTC if found[3] == "Z" else datetime.fromisoformat(f"2000-01-01T00:00:00{found[3]}").tzinfo
    return moment.replace(tzinfo=zone).timestamp()
