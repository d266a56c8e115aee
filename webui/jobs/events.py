"""Read the event files that ansible-runner leaves, and cut each down to what a page or a stream needs.

An event: {counter, ident, event, created epoch, uuid, host, play, task, task_uuid, action, role, stdout,
duration, ignored, res}. `res` holds only the keys in KEPT, bounded in size; the file keeps the rest. The
counters of the tidying run come after those of the run itself: they begin at TIDY.
"""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from webui.jobs.folder import event_files

KEPT = (
    "msg", "reason", "message", "phase", "percent", "seconds", "ready", "changed", "failed", "unreachable",
    "skipped", "problems", "diff", "attempts", "retries", "censored",
)  # fmt: skip
TIDY = 1_000_000  # an event of the tidying run has its own counter plus this
MAX_TEXT = 4000
MAX_DIFF = 20_000
MAX_STDOUT = 20_000
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_TOO_LONG = "Its result was over 700,000 characters long and was not kept."


def read(folder: Path, after: int = 0) -> Iterator[dict]:
    """A job's events above the counter `after`, in order. A file that cannot be read is passed over."""
    for counter, path in files(folder, after):
        event = load(counter, path)
        if event:
            yield event


def files(folder: Path, after: int = 0) -> list[tuple[int, str]]:
    """(counter, path) of a job's finished event files above `after`, in order."""
    found = event_files(folder / "artifacts/run/job_events", after) if after < TIDY else []
    tidy = event_files(folder / "artifacts/tidy/job_events", max(0, after - TIDY))
    return found + [(TIDY + counter, path) for counter, path in tidy]


def load(counter: int, path: str) -> dict | None:
    """One event file, trimmed; None when it cannot be read."""
    try:
        with open(path, "rb") as file:
            raw = json.load(file)
        return trim(raw, counter)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def trim(raw: dict, counter: int) -> dict:
    """An event as runner wrote it → what is yielded."""
    data = raw.get("event_data") or {}
    kind = raw.get("event", "verbose")
    res = data.get("res")
    event = {
        "counter": counter,
        "ident": "tidy" if counter > TIDY else "run",
        "event": kind,
        "created": epoch(raw.get("created")),
        "uuid": raw.get("uuid"),
        "play": data.get("play"),
        "task": data.get("task") or (data.get("name") if kind == "playbook_on_task_start" else None),
        "task_uuid": data.get("task_uuid"),
        "action": data.get("resolved_action") or data.get("task_action"),
        "role": data.get("role"),
        "host": data.get("host"),
        "duration": data.get("duration"),
        "ignored": bool(data.get("ignore_errors")),
        "stdout": _COLOUR.sub("", raw.get("stdout") or "")[:MAX_STDOUT].strip("\r\n"),
        "res": {},
    }
    if isinstance(res, dict):
        event["res"] = trim_result(res)
        if not res and kind in ("runner_on_ok", "runner_on_failed", "runner_retry"):
            event["res"] = {"message": _TOO_LONG}
    return event


def trim_result(res: dict) -> dict:
    """The keys of a task's result that are shown, each bounded."""
    kept = {}
    for key in KEPT:
        if key in res:
            kept[key] = _diff(res[key]) if key == "diff" else _bounded(res[key])
    return kept


def epoch(stamp: object) -> float | None:
    """Runner's ISO time as seconds since 1970; a time without a zone is UTC."""
    try:
        time = datetime.fromisoformat(str(stamp))
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _bounded(value: object, depth: int = 0) -> object:
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + " …"
    if isinstance(value, list):
        return [_bounded(item, depth + 1) for item in value[:50]] if depth < 4 else None
    if isinstance(value, dict):
        return {k: _bounded(v, depth + 1) for k, v in list(value.items())[:50]} if depth < 4 else None
    return value


def _diff(value: object) -> object:
    """Keep a diff whole or say that it is too long: half a diff shows a change that is none."""
    return (
        value if len(json.dumps(value, default=str)) <= MAX_DIFF else {"message": "The difference is too long to show."}
    )
