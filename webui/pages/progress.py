"""A job as a person follows it: what it is called, how far it is, what each host does, how it ended."""

import re
import threading
import time
from dataclasses import dataclass, field
from functools import lru_cache

from webui.core import words
from webui.jobs import JobView

COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
OUTPUT = 400_000  # bytes of raw output a page shows; the file has it all
# A job's status or a host's result in a task -> (class of the shape and colour, word).
STATUS = {
    "starting": ("doing", "starting"),
    "running": ("doing", "running"),
    "cancelling": ("attention", "cancelling"),
    "successful": ("good", "done"),
    "failed": ("bad", "failed"),
    "cancelled": ("attention", "cancelled"),
    "interrupted": ("bad", "interrupted"),
}
HOST = {
    "running": ("doing", "working"),
    "retrying": ("doing", "waiting"),
    "ok": ("good", "ok"),
    "changed": ("good", "changed"),
    "failed": ("bad", "failed"),
    "unreachable": ("bad", "unreachable"),
    "ignored": ("attention", "passed over"),
    "skipped": ("plain", "skipped"),
}
CANCEL = {
    "swap": "The swap ends within about ten seconds, wherever it is. If the old model has been stopped by then, "
    "nothing serves until the next swap.",
    "stop_model": "The run ends within about ten seconds. The model may be stopped already.",
}


@dataclass(frozen=True)
class Step:
    """A task: its sentence, its worst state, seconds, and its hosts [(host, class, word, seconds, message)]."""

    name: str
    cls: str
    word: str
    seconds: float | None
    started: float | None
    hosts: list


@dataclass(frozen=True)
class Progress:
    """What job.html shows."""

    id: str
    operation: str
    name: str
    status: tuple
    headline: str
    ended: bool
    started: float
    seconds: float
    expected: float | None
    phase: str = ""
    percent: int | None = None
    detail: str = ""
    steps: list = field(default_factory=list)
    stories: list = field(default_factory=list)  # (heading, text)
    log_tail: list = field(default_factory=list)
    arithmetic: list = field(default_factory=list)
    reason: str = ""
    warnings: list = field(default_factory=list)
    problems: list = field(default_factory=list)
    command: str = ""
    asked_by: str = ""
    check: bool = False
    can_cancel: bool = False


class Views:
    """The JobView of a running job, fed with its new events only, for everybody who looks."""

    def __init__(self):
        self._known, self._lock = {}, threading.Lock()

    def of(self, job):
        with self._lock:
            view = self._known.get(job.id)
            if view is None:
                if len(self._known) > 32:
                    self._known.pop(next(iter(self._known)))
                view = self._known[job.id] = JobView()
            for event in job.events(after=view.counter):
                view.feed(event)
            return view


views = Views()


@lru_cache(maxsize=256)
def _expected(store, operation, model, _half_minute):
    return store.expected_seconds(operation, {"model": model} if model else {})


def expected(store, job):
    """Seconds that a job like this one took before, or None. Asked for anew every half minute."""
    return _expected(store, job.operation, job.variables.get("model"), int(time.time() / 30))


def of(job, facts, store, view=None):
    """The Progress of a job."""
    view = view or views.of(job)
    result, ended = job.result or {}, job.status not in ("starting", "running", "cancelling")
    usual = None if ended else expected(store, job)
    return Progress(
        id=job.id,
        operation=job.operation,
        name=words.name_of(job.operation, job.variables, facts.titles),
        status=STATUS.get(job.status, ("plain", job.status)),
        headline=_headline(job, result, view, facts, ended),
        ended=ended,
        started=job.started or job.created,
        seconds=job.seconds if ended and job.seconds is not None else time.time() - job.created,
        expected=usual,
        phase=_phase(view, ended),
        percent=None if ended or view.percent is None else max(0, min(100, round(view.percent))),
        detail="" if ended else _detail(view),
        steps=_steps(view),
        stories=_stories(result),
        log_tail=[str(line) for line in result.get("log_tail") or []],
        arithmetic=result.get("arithmetic") or [],
        reason=result.get("reason") or "",
        warnings=result.get("warnings") or [],
        problems=result.get("problems") or [],
        command=job.command or "",
        asked_by=job.asked_by or "",
        check=job.check,
        can_cancel=job.status in ("starting", "running"),
    )


def running_bar(job, facts, now):
    """The dashboard's line for a running job: its Progress without steps."""
    from webui.pages import jobs

    return of(job, facts, jobs._get_current_object())


def raw_output(job):
    """The end of what ansible-playbook printed, without colours: (text, cut short)."""
    path = job.dir / "artifacts" / "run" / "stdout"
    try:
        with open(path, "rb") as file:
            cut = file.seek(0, 2) > OUTPUT
            file.seek(-OUTPUT if cut else 0, 2 if cut else 0)
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "", False
    return COLOUR.sub("", text).replace("\r\n", "\n"), cut


def _phase(view, ended):
    if ended:
        return ""
    return (view.phase or view.current_task or "starting").replace("_", " ")


def _detail(view):
    """What the newest look said, unless it is the phase and the percent once more: "16 of 96 MB, 4.3 MB/s"."""
    message = view.message or ""
    return "" if message.startswith(str(view.phase or "\0")) else message


def _headline(job, result, view, facts, ended):
    name = words.name_of(job.operation, job.variables, facts.titles, doing=not ended)
    if not ended:
        if job.status == "cancelling":
            return "Cancelling. What runs on the Sparks is being ended."
        return f"{name}{' (preview, nothing is changed)' if job.check else ''}"
    if job.status == "cancelled":
        return words.sentence(result.get("message") or f"{name} was cancelled")
    if job.status == "interrupted":
        return f"{name} was interrupted: the program that ran it ended. The next swap puts things right."
    if result.get("message"):
        return words.sentence(result["message"])
    if job.status == "failed":
        told = view.failed[0] if view.failed else None
        return words.sentence(f"{name} failed on {told['host']}: {told['message']}" if told else f"{name} failed")
    return f"{name}: done."


def _stories(result):
    stories = result.get("stories") or {}
    return [
        (heading, str(stories[key]))
        for key, heading in (("new", "The new model"), ("old", "The old model"))
        if stories.get(key) and not words.said(str(stories[key]), result.get("message") or "")
    ]


def _steps(view):
    steps = []
    for task in view.tasks:
        hosts = [
            (
                host,
                *HOST.get(found["status"], ("plain", found["status"])),
                found.get("seconds"),
                found.get("message") or "",
            )
            for host, found in task["hosts"].items()
        ]
        if hosts and all(found["status"] == "skipped" for found in task["hosts"].values()):
            continue
        cls, word = max(
            ((h[1], h[2]) for h in hosts), key=lambda pair: _RANK.index(pair[0]), default=("doing", "working")
        )
        steps.append(Step(task["name"], cls, word, task["seconds"], task["started"], hosts))
    return steps


_RANK = ["plain", "good", "attention", "doing", "bad"]
