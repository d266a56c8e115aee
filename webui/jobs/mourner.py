"""A process beside each supervisor that outlives it: a job whose supervisor was killed leaves no process behind.

The kernel ends nobody's children. So before a supervisor starts anything it forks a process that waits for the end of a
pipe whose other end only the supervisor has. A supervisor that came to its own end says farewell first.
"""

import contextlib
import os
import signal
import time

from webui.jobs import processes
from webui.jobs.job import Job
from webui.jobs.store import JobStore

CANCELS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # what the supervisor answers with a cancel
HALF_MADE = 0.5  # seconds in which a child that was just forked may still lack its tag


class Mourner:
    """The waiting process of one job; to be made before this process has threads."""

    def __init__(self, store: JobStore, job: Job):
        reader, self._writer = os.pipe()
        # Until it ignores them the child would answer these as the supervisor does.
        signal.pthread_sigmask(signal.SIG_BLOCK, CANCELS)
        self.pid = os.fork()
        if self.pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, CANCELS)
            os.close(reader)
            return
        try:
            _wait(reader, store, job)
        finally:
            os._exit(0)

    def dismiss(self) -> None:
        """The job has come to its own end."""
        with contextlib.suppress(OSError):  # it may have been killed too
            os.write(self._writer, b".")
            os.close(self._writer)
            os.waitpid(self.pid, 0)


def _wait(reader: int, store: JobStore, job: Job) -> None:
    """Wait for the supervisor's end; without a farewell, end the job's processes and write it down as interrupted."""
    os.setsid()
    for number in CANCELS:
        signal.signal(number, signal.SIG_IGN)
    # Neither the job's lock nor a reader of its output may wait for this process.
    reader = os.dup2(reader, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    if os.read(reader, 1):
        return
    processes.end(store.state, {job.id}, grace=1.0)
    time.sleep(HALF_MADE)
    processes.end(store.state, {job.id}, grace=0)
    store.bury(job)
