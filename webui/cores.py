"""One core for the threads that answer requests, every core for the processes that they start.

Python runs one thread at a time. On two cores each wait for the network hands its lock to a thread on the other core,
which has to be woken for it; on one core the next thread just goes on. Measured with 16 requests at once
(tests/bench/bench_gateway.py): the last one's first byte after 13 ms instead of 27.
"""

import contextlib
import os

_all = None


def pin():
    """Keep this thread, and the threads that it starts from now on, on the core that it is on."""
    global _all
    if not hasattr(os, "sched_setaffinity"):
        return  # not Linux
    allowed = os.sched_getaffinity(0)
    if len(allowed) > 1:
        _all = allowed
        os.sched_setaffinity(0, {_current(allowed)})


@contextlib.contextmanager
def unpinned():
    """Start processes in here: they may use every core that this server may."""
    if _all is None:
        yield
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _all)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def _current(allowed):
    """The core that this thread runs on: the 39th field of /proc/thread-self/stat (proc(5))."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/thread-self/stat", encoding="ascii", errors="replace") as file:
            core = int(file.read().rpartition(")")[2].split()[36])
        if core in allowed:
            return core
    return min(allowed)
