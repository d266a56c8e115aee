"""Find and end the processes of a job, by the tag that each of them carries in its environment.

A worker of ansible-core ≥ 2.19 has a session of its own, so no process group reaches all of a job's
processes; its environment does. A process that is meant to outlive its job, as a daemon is, drops
SPARK_CONTROL_JOB from its environment when it detaches. OpenSSH's shared connections are left alone: other
jobs may be using them. Signals go through a pidfd opened before the process is looked at, so a number that
was given away is never hit.
"""

import contextlib
import os
import re
import select
import signal
import time
from pathlib import Path

TAG = "SPARK_CONTROL_JOB"
RUN = re.compile(r"run-([0-9a-f-]{36})-(\d+)-(\d+)-(\d+)")


def started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot (field 22 of /proc/PID/stat); None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def is_over(run: str | None) -> bool:
    """Whether a lease's `run` is an ansible-playbook on this machine that has come to its end.

    The id is plugins/module_utils/spark_run.py's: run-<boot id>-<inode of the pid namespace>-<pid>-<start in ticks>.
    """
    match = RUN.fullmatch(run or "")
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        here = match and (match[1], int(match[2])) == (boot, os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return False
    return bool(here) and started(int(match[3])) != int(match[4])


def children(parent: int) -> list[int]:
    """The living direct children of a process."""
    found = []
    for pid in _pids():
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            if int(fields[1]) == parent and fields[0] not in (b"Z", b"X"):
                found.append(pid)
        except (OSError, ValueError, IndexError):
            continue
    return found


def tagged(state: Path) -> dict[int, str]:
    """pid → job id of every living process of a job of this state folder, except this process itself."""
    mine, found = os.getpid(), {}
    for pid in _pids():
        if pid != mine and (job := _tag(pid, state)):
            found[pid] = job
    return found


def send(pid: int, number: int, *, begun: int | None = None) -> bool:
    """Signal a process, if `begun` is still its start time. False when it is gone or another."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        now = started(pid)
        if now is None or (begun is not None and now != begun):
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def end(state: Path, jobs: set[str], *, grace: float = 2.0, patience: float = 10.0) -> list[int]:
    """End every process of these jobs: TERM, `grace` seconds, KILL, again until none is left.

    Returns the pids that were there; those that could not be ended in `patience` seconds are still running.
    """
    seen: set[int] = set()
    begin = time.monotonic()
    number = signal.SIGTERM if grace > 0 else signal.SIGKILL
    while True:
        targets = _open(state, jobs)
        if not targets:
            return sorted(seen)
        seen.update(targets)
        for handle in targets.values():
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(handle, number)
        left = grace if number == signal.SIGTERM else 1.0
        wait(list(targets.values()), left)
        for handle in targets.values():
            os.close(handle)
        if time.monotonic() - begin > patience:
            return sorted(seen)
        number = signal.SIGKILL


def wait(handles: list[int], seconds: float) -> bool:
    """Wait until the processes behind these pidfds have ended. False when the time ran out first."""
    left, deadline = set(handles), time.monotonic() + seconds
    poll = select.poll()
    for handle in left:
        poll.register(handle, select.POLLIN)
    while left and (rest := deadline - time.monotonic()) > 0:
        for handle, _ in poll.poll(rest * 1000):
            left.discard(handle)
            poll.unregister(handle)
    return not left


def _open(state: Path, jobs: set[str]) -> dict[int, int]:
    targets = {}
    for pid, job in tagged(state).items():
        if job not in jobs:
            continue
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            continue
        if _tag(pid, state) == job and started(pid) is not None:
            targets[pid] = handle
        else:
            os.close(handle)
    return targets


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _tag(pid: int, state: Path) -> str | None:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    if TAG.encode() not in environ:
        return None
    values = dict(pair.split(b"=", 1) for pair in environ.split(b"\0") if b"=" in pair)
    if values.get(b"SPARK_CONTROL_STATE") != os.fsencode(state):
        return None
    if _is_shared_connection(pid):
        return None
    return values.get(TAG.encode(), b"").decode(errors="replace") or None


def _is_shared_connection(pid: int) -> bool:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").strip()
    except OSError:
        return False
    return line.startswith(b"ssh: ") and line.endswith(b"[mux]")
