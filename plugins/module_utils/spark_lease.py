"""The lease on the GPUs: one file on the head Spark, changed under a lock, expiring by the head's own clock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterable

from .spark_write import write_json

# How the purpose of a run's own lease begins (roles/vllm/tasks).
RUNS = ("swap to ", "stop of ")
FIELDS = ("id", "holder", "purpose", "taken", "expires", "token_hash", "run")


class Leased(Exception):
    """Somebody else holds the lease; `lease` says who and until when."""

    def __init__(self, lease: dict):
        self.lease = lease
        super().__init__(describe(lease))


def describe(lease: dict) -> str:
    """For a person: who has reserved the GPUs, what for, for how long; of a run also since when, and how to go on."""
    purpose = str(lease.get("purpose") or "")
    said = f"The GPUs are reserved by {lease['holder']}{f' for {purpose}' if purpose else ''}, "
    said += f"for another {duration(lease['seconds_left'])}."
    if is_run(lease) and lease.get("seconds_held") is not None:
        said += f" That run took them {duration(lease['seconds_held'])} ago. If it is over, tidy_swap.yml clears up "
        said += "after it; force=true goes ahead in any case."
    return said


def is_run(lease: dict) -> bool:
    """Whether a swap or a stop took it, for its own length; otherwise somebody reserved the GPUs."""
    return str(lease.get("purpose") or "").startswith(RUNS)


def duration(seconds: float) -> str:
    """Seconds in a person's words: 45 s, 12 min, 2 h 5 min."""
    seconds = max(0, round(seconds))
    if seconds < 90:
        return f"{seconds} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def read(state_dir: str) -> dict | None:
    """The lease in force, with `seconds_left` and `seconds_held`; None for an expired or unreadable one."""
    try:
        with open(_path(state_dir), encoding="utf-8") as text:
            lease = json.load(text)
        now = time.time()
        left, held = float(lease["expires"]) - now, now - float(lease.get("taken") or now)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if left <= 0 or not isinstance(lease.get("id"), str) or not isinstance(lease.get("holder"), str):
        return None
    told = {"seconds_left": round(left, 1), "seconds_held": round(max(0.0, held), 1)}
    return {field: lease.get(field) for field in FIELDS} | told


def yields(
    lease: dict | None,
    identity: str | None,
    token_hash: str | None = None,
    supersedes: Iterable[str] = (),
    force: bool = False,
) -> bool:
    """Whether the lease in force leaves room for who asks. Nothing else judges that.

    There is none, it is theirs by id or by their token's hash, its holder is one of `supersedes` (known to be dead), or
    they force it.
    """
    if lease is None or force:
        return True
    by_token = token_hash is not None and lease.get("token_hash") == token_hash
    return by_token or lease["id"] == identity or lease["id"] in supersedes


def after_taking(
    before: dict | None, lease: dict, seconds: float, supersedes: Iterable[str] = (), force: bool = False
) -> dict:
    """The lease that is in force once it is taken, or renewed, for `seconds` from now. Raises Leased."""
    if not yields(before, lease["id"], supersedes=supersedes, force=force):
        raise Leased(before)
    now = time.time()
    taken = before["taken"] if before and before["id"] == lease["id"] else now
    fields = {**lease, "taken": taken, "expires": now + seconds}
    told = {"seconds_left": seconds, "seconds_held": round(max(0.0, now - taken), 1)}
    return {field: fields.get(field) for field in FIELDS} | told


def after_release(
    before: dict | None, identity: str | None = None, token_hash: str | None = None, force: bool = False
) -> None:
    """The lease that is in force once it is given back: none. Raises Leased where it is somebody else's."""
    if not yields(before, identity, token_hash, force=force):
        raise Leased(before)


def take(
    state_dir: str, lease: dict, seconds: float, supersedes: Iterable[str] = (), force: bool = False
) -> dict | None:
    """Take or renew the lease for `seconds` from now; returns what was in force before. Raises Leased."""
    with _locked(state_dir):
        before = read(state_dir)
        _write(state_dir, after_taking(before, lease, seconds, supersedes, force))
        return before


def renew(state_dir: str, lease_id: str | None, seconds: float) -> bool:
    """Push the expiry of our own lease out; False where it is no longer ours (taken by force, or expired)."""
    if not lease_id:
        return True
    with _locked(state_dir):
        before = read(state_dir)
        if before is None or not yields(before, lease_id):
            return False
        _write(state_dir, before | {"expires": time.time() + seconds})
        return True


def release(
    state_dir: str, lease_id: str | None = None, token_hash: str | None = None, force: bool = False
) -> dict | None:
    """Give the lease back; returns what was in force, None if nothing was. Raises Leased."""
    with _locked(state_dir):
        before = read(state_dir)
        after_release(before, lease_id, token_hash, force)
        if before is not None:
            os.unlink(_path(state_dir))
        return before


def _path(state_dir: str) -> str:
    return os.path.join(os.path.expanduser(state_dir), "lease.json")


def _write(state_dir: str, lease: dict) -> None:
    write_json(_path(state_dir), {field: lease.get(field) for field in FIELDS})


@contextlib.contextmanager
def _locked(state_dir: str):
    folder = os.path.expanduser(state_dir)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with open(os.path.join(folder, "lease.lock"), "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
