"""Runs that only look, which a GET may start: one a question, a few in all, each with an end."""

import contextlib
import json
import threading
import time

from flask import current_app

from webui import guard
from webui.core import changes
from webui.core.problems import Problem

AT_ONCE = 4  # runs
REUSE = 20  # seconds for which a finished preview still tells the truth
LONGEST = 120.0  # seconds until one is ended
CALLERS = 32  # that wait for a run's end at once; each holds a thread
BUSY = {"Retry-After": "5"}


class Looks:
    """The runs of one app: {question: job id}. Threads may share it."""

    def __init__(self, store):
        self.store, self._known, self._lock = store, {}, threading.Lock()
        self._callers = threading.BoundedSemaphore(CALLERS)

    def job(self, question, start):
        """The Job that answers a question: one that runs, a preview that has just succeeded, or what start() gives.

        Raises Problem 503 while AT_ONCE others run, and what start raises.
        """
        with self._lock:
            jobs = {key: job for key, name in self._known.items() if (job := self.store.get(name))}
            kept = {key: job for key, job in jobs.items() if not job.finished or _is_fresh(job)}
            if question not in kept:
                if sum(not job.finished for job in kept.values()) >= AT_ONCE:
                    raise Problem(503, "Several looks at the Sparks run already. Try again.", headers=BUSY)
                kept[question] = start()
                end = threading.Timer(LONGEST, self.store.cancel, (kept[question].id, "page"))
                end.daemon = True
                end.start()
            self._known = {key: job.id for key, job in kept.items()}
            return kept[question]

    @contextlib.contextmanager
    def caller(self, job):
        """A place among those who wait for a run's end. Raises Problem 503 with its address without one."""
        if not self._callers.acquire(blocking=False):
            raise Problem(503, "Many wait for looks at the Sparks already.", headers=BUSY, url=f"/jobs/{job.id}")
        try:
            yield
        finally:
            self._callers.release()


def _is_fresh(job):
    return job.check and job.status == "successful" and time.time() - job.ended <= REUSE


def the():
    """This app's Looks."""
    return current_app.extensions["looks"]


def look(operation, variables, *, check=False, asked_by="page"):
    """The Job of a run that only looks, for a GET. check: it is a preview of one that changes something.

    Raises Problem 403 for what another site's page caused, 503 while too many run, and what changes.start raises.
    """
    guard.refuse_from_elsewhere()

    def start():
        return changes.start(operation, variables, check=check, background=True, asked_by=asked_by)

    return the().job(json.dumps([operation, check, variables], sort_keys=True), start)
