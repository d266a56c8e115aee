"""The docker engine that the lab runs on: the one that answers, or one of our own for as long as it is needed."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import PROJECT

# Whoever started the engine, the next `down` has to know: not in a clone's own folder.
MARK = Path("/run/spark-lab/engine.json")


class LabError(Exception):
    """The lab cannot be had; the text says why and what would help."""


def docker(*arguments: str, check: bool = True, **options) -> subprocess.CompletedProcess:
    """Run docker and capture what it says. Raises LabError with its words where it fails and `check` is set."""
    options = {"stdin": subprocess.DEVNULL, "timeout": 180} | options
    if "input" in options:
        del options["stdin"]
    done = subprocess.run(["docker", *arguments], capture_output=True, check=False, **options)
    if check and done.returncode:
        said = done.stderr if isinstance(done.stderr, str) else done.stderr.decode(errors="replace")
        raise LabError(f"docker {' '.join(arguments[:2])} failed: {said.strip()}")
    return done


def wait(condition, trouble: str, seconds: float = 60) -> None:
    """Wait for a condition to be true; after so many seconds raise LabError with `trouble`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{trouble} (waited {seconds:.0f} s).")
        time.sleep(0.05)


def words(*arguments: str) -> list[str]:
    """What docker printed, as words."""
    return docker(*arguments).stdout.decode().split()


def answers() -> bool:
    """Whether a docker engine answers."""
    if not shutil.which("docker"):
        return False
    return docker("version", "--format", "{{.Server.Version}}", check=False, timeout=20).returncode == 0


def need() -> None:
    """Have an engine: the one that answers, else Debian's docker.io started by us, as root.

    Until `release`, or this process's end, no other run stops it.
    """
    fcntl.flock(_in_use(), fcntl.LOCK_SH)
    with turn("engine"):
        if not answers():
            _start()


@contextmanager
def turn(name: str):
    """Hold a lock of this machine, so that two runs do not make the same thing at once."""
    held = _lock_file(name)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _start() -> None:
    if os.geteuid():
        raise LabError("No docker engine answers, and only root can start one.")
    install("docker.io", "iptables")
    MARK.parent.mkdir(parents=True, exist_ok=True)
    # The lab needs no way out of its network, so the machine does not become a router and gets no second bridge.
    alone = ("--bridge=none", "--ip-forward=false", "--ip-masq=false")
    with open(MARK.with_name("dockerd.log"), "wb") as log:
        engine = subprocess.Popen(
            [shutil.which("dockerd") or "/usr/sbin/dockerd", *alone],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    MARK.write_text(json.dumps({"pid": engine.pid, "started": started(engine.pid)}))
    trouble = f"dockerd did not start; {MARK.with_name('dockerd.log')} says why"
    wait(lambda: engine.poll() is not None or answers(), trouble)
    if engine.poll() is not None:
        raise LabError(f"{trouble}.")


def release() -> None:
    """Stop the engine if we started it, no other run needs it and nobody's container runs on it."""
    try:
        fcntl.flock(_in_use(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    try:
        _stop()
    finally:
        fcntl.flock(_in_use(), fcntl.LOCK_UN)


@functools.cache
def _in_use() -> int:
    return _lock_file("engine-in-use")


def _lock_file(name: str) -> int:
    folder = Path("/run/lock") if os.access("/run/lock", os.W_OK) else Path("/tmp")
    return os.open(folder / f"spark-lab-{name}.lock", os.O_RDWR | os.O_CREAT, 0o666)


def _stop() -> None:
    try:
        mark = json.loads(MARK.read_text())
    except (OSError, ValueError):
        return
    if started(mark["pid"]) == mark["started"]:
        if words("ps", "--quiet"):
            return
        os.kill(mark["pid"], signal.SIGTERM)

        def ended() -> bool:
            # It is our child if this process started it, and then it has to be reaped.
            with suppress(ChildProcessError):
                os.waitpid(mark["pid"], os.WNOHANG)
            return started(mark["pid"]) != mark["started"]

        wait(ended, f"dockerd (process {mark['pid']}) does not end", 30)
    shutil.rmtree(MARK.parent, ignore_errors=True)


def install(*packages: str) -> None:
    """Have these Debian packages."""
    done = subprocess.run([PROJECT / "tests/need-debian.sh", *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{done.stdout}{done.stderr}".strip())


def started(pid: int) -> int | None:
    """When a process started, in the kernel's ticks; None where there is none (a zombie is none)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
