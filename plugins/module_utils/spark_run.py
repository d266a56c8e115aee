"""Which run of ansible-playbook this is, so that the next one on this machine knows whether it still goes on.

Used on the controller, by action plugins; the page reads the same id (webui/jobs/processes.py), since neither imports
the other. A lease carries it beside the id of whoever took it.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import uuid

from .spark_transfer import boot, ticks

_RUN = re.compile(r"run-([0-9a-f-]{36}-\d+)-(\d+)-(\d+)")


def run_id() -> str:
    """The id of the ansible-playbook that this process works for: where its pid counts, the pid, when it began.

    Where the kernel does not tell these, any id that nobody else has.
    """
    pid = os.getppid()  # a task runs in a child of its own
    here, began = _here(), ticks(pid)
    return f"run-{here}-{pid}-{began}" if here and began is not None else str(uuid.uuid4())


def is_over(run: str | None) -> bool:
    """Whether an id is one of a run on this machine that has come to its end, however it did."""
    found = _RUN.fullmatch(run or "")
    return bool(found) and found[1] == _here() and ticks(int(found[2])) != int(found[3])


def caller() -> str:
    """Who runs this playbook by hand, and where: user@machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in a container
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _here() -> str | None:
    """Where a pid means the same process: this boot of this machine, and its space of pids; a container has its own."""
    try:
        return f"{boot()}-{os.stat('/proc/self/ns/pid').st_ino}" if boot() else None
    except OSError:
        return None
