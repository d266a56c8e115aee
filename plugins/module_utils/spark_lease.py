"""The lease on the GPUs: one file on the head Spark, changed under a lock, expiring by the head's own clock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time

FIELDS = ("id", "holder", "purpose", "taken", "expires", "token_hash")


class Leased(Exception):
    """Somebody else holds the lease; `lease` says who and until when."""

    def __init__(self, lease: dict):
        self.lease = lease
        super().__init__(describe(lease))


def describe(lease: dict) -> str:
    """One sentence for a person: who has reserved the GPUs, what for, for how long."""
    purpose = f" for {lease['purpose']}" if lease.get("purpose") else ""
    return f"The GPUs are reserved by {lease['holder']}{purpose}, for another {duration(lease['seconds_left'])}."


def duration(seconds: float) -> str:
    """Seconds in a person's words: 45 s, 12 min, 2 h 5 min."""
    seconds = max(0, round(seconds))
    if seconds < 90:
        return f"{seconds} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def read(state_dir: str) -> dict | None:
    """The lease in force, with `seconds_left`, or None: an expired or unreadable one is no lease."""
    try:
        with open(_path(state_dir), encoding="utf-8") as text:
            lease = json.load(text)
        left = float(lease["expires"]) - time.time()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if left <= 0 or not isinstance(lease.get("id"), str) or not isinstance(lease.get("holder"), str):
        return None
    return {field: lease.get(field) for field in FIELDS} | {"seconds_left": round(left, 1)}


def take(state_dir: str, lease: dict, seconds: float, supersedes: list[str] = (), force: bool = False) -> dict | None:
    """Take or renew the lease for `seconds` from now; returns what was in force before.

    A lease of the same id is renewed. One whose id is in `supersedes` (holders known to be dead), an expired one,
    and with `force` any other, is replaced. Raises Leased where somebody else holds it.
    """
    with _locked(state_dir):
        before = read(state_dir)
        if before and before["id"] != lease["id"] and before["id"] not in supersedes and not force:
            raise Leased(before)
        now = time.time()
        taken = before["taken"] if before and before["id"] == lease["id"] else now
        _write(state_dir, {**lease, "taken": taken, "expires": now + seconds})
        return before


def renew(state_dir: str, lease_id: str | None, seconds: float) -> bool:
    """Push the expiry of our own lease out; False where it is no longer ours (taken by force, or expired)."""
    if not lease_id:
        return True
    with _locked(state_dir):
        before = read(state_dir)
        if not before or before["id"] != lease_id:
            return False
        _write(state_dir, {field: before[field] for field in FIELDS} | {"expires": time.time() + seconds})
        return True


def release(
    state_dir: str, lease_id: str | None = None, token_hash: str | None = None, force: bool = False
) -> dict | None:
    """Give the lease back; returns what was in force, None if nothing was.

    It must be ours by id or by its token's hash; raises Leased where it is somebody else's.
    """
    with _locked(state_dir):
        before = read(state_dir)
        if before is None:
            return None
        ours = before["id"] == lease_id or (token_hash is not None and before["token_hash"] == token_hash)
        if not ours and not force:
            raise Leased(before)
        os.unlink(_path(state_dir))
        return before


def _path(state_dir: str) -> str:
    return os.path.join(os.path.expanduser(state_dir), "lease.json")


def _write(state_dir: str, lease: dict) -> None:
    path = _path(state_dir)
    fresh = f"{path}.{os.getpid()}"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as text:
        json.dump({field: lease.get(field) for field in FIELDS}, text)
    os.replace(fresh, path)


@contextlib.contextmanager
def _locked(state_dir: str):
    folder = os.path.expanduser(state_dir)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with open(os.path.join(folder, "lease.lock"), "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
