"""One job, read from its folder: its status, its result, its events as they come."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from webui.jobs import events, result
from webui.jobs.folder import FINAL, is_held, read_job, read_json
from webui.jobs.view import JobView

POLL = 0.1  # seconds between two looks at a running job's folder


class Job:
    """One run, read from its folder; the properties of one that runs change as it goes on."""

    def __init__(self, folder: Path, data: dict):
        self.dir = folder
        self.id = folder.name
        self._data = data
        self._seen = JobView()
        self._seeing = threading.Lock()

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.operation} {self.status}>"

    @classmethod
    def load(cls, folder: Path) -> "Job | None":
        """The job in a folder; None when there is none that can be read."""
        data = read_job(folder)
        return cls(folder, data) if data else None

    @property
    def data(self) -> dict:
        """job.json as it is now."""
        if self._data.get("status") not in FINAL:
            self._data = read_job(self.dir) or self._data
        return self._data

    @property
    def operation(self) -> str:
        """The playbook's name without `.yml`."""
        return self._data["operation"]

    @property
    def variables(self) -> dict:
        """What the caller gave, secrets masked."""
        return self._data.get("variables") or {}

    @property
    def asked_by(self) -> str:
        """Who asked: page, api, terminal, timer, …"""
        return self._data.get("asked_by") or ""

    @property
    def check(self) -> bool:
        """Whether it is a preview that changes nothing."""
        return bool(self._data.get("check"))

    @property
    def background(self) -> bool:
        """Whether it is housekeeping that no list shows unless asked."""
        return bool(self._data.get("background"))

    @property
    def command(self) -> str:
        """The ansible-playbook line that does the same, secrets masked."""
        return self._data.get("command") or ""

    @property
    def created(self) -> float:
        """When it was asked for, epoch."""
        return self._data["created"]

    @property
    def started(self) -> float | None:
        """When its supervisor began, epoch."""
        return self.data.get("started")

    @property
    def status(self) -> str:
        """One of STATUSES: from the lock, not from hearsay."""
        if self._data.get("status") in FINAL:
            return self._data["status"]
        held = is_held(self.dir / "lock")  # before job.json is read: a supervisor writes its end, then lets go
        data = self.data
        if data.get("status") in FINAL:
            return data["status"]
        if not held:
            return "interrupted"
        if (self.dir / "cancel").exists():
            return "cancelling"
        return "running" if data.get("playbook_pid") else "starting"

    @property
    def finished(self) -> bool:
        """Whether it has come to any end."""
        return self.status in FINAL

    @property
    def ended(self) -> float | None:
        """When it ended, epoch; for an interrupted job, when it was last heard of."""
        if not self.finished:
            return None
        return self._data.get("ended") or self.last_heard()

    @property
    def seconds(self) -> float:
        """How long it took, or has taken so far."""
        begin = self.started or self.created
        return round(max(0.0, (self.ended or time.time()) - begin), 3)

    @property
    def changed(self) -> bool | None:
        """Whether it changed anything; None while it runs."""
        found = self.result
        return bool(found.get("changed")) if found else None

    @property
    def result(self) -> dict | None:
        """The result, with at least operation, ok, changed and message; None while it runs."""
        status = self.status
        if status not in FINAL:
            return None
        found = read_json(self.dir / "result.json")
        if found:
            return found
        if status == "interrupted":
            return result.interrupted(self.operation, self.view())
        return result.finished(self.operation, status, None, self.view())

    @property
    def cancelled_by(self) -> str | None:
        """Who asked for its end, if anybody did."""
        return (read_json(self.dir / "cancel") or {}).get("by")

    def events(self, after: int = 0) -> list[dict]:
        """The events above the counter `after`, in order (shape: events.py)."""
        return list(events.read(self.dir, after))

    def follow(self, after: int = 0, heartbeat: float = 15.0) -> Iterator[dict | None]:
        """Events as they come, from above `after` on; None after `heartbeat` seconds of silence.

        Ends when the job has ended and everything was given. Closing the iterator is all that a reader who
        leaves has to do.
        """
        folders = [self.dir / "artifacts" / ident / "job_events" for ident in ("run", "tidy")]
        spoke, looked = time.monotonic(), None
        while True:
            # In this order: what a job writes before its end is then never missed.
            over = self.finished
            times = [_changed(folder) for folder in folders]
            # A folder's time has the grain of a clock tick, so one that is young is looked at again.
            if over or times != looked or time.time() - max(times) < 2 * POLL:
                looked = times
                for counter, path in events.files(self.dir, after):
                    after = counter
                    if event := events.load(counter, path):
                        yield event
                        spoke = time.monotonic()
            if over:
                return
            if time.monotonic() - spoke >= heartbeat:
                yield None
                spoke = time.monotonic()
            time.sleep(POLL)

    def view(self) -> JobView:
        """What a person wants to see of the run so far. The same view, brought up to date, on each call."""
        with self._seeing:
            return self._seen.feed_all(self.events(self._seen.counter))

    def last_heard(self) -> float:
        """When the job last wrote something, epoch."""
        found = events.files(self.dir)
        for path in [found[-1][1]] if found else [self.dir / "job.json"]:
            with contextlib.suppress(OSError):
                return os.stat(path).st_mtime
        return self.created


def _changed(folder: Path) -> float:
    try:
        return os.stat(folder).st_mtime
    except OSError:
        return 0.0
