"""What a person wants to see of a run, folded from its events: a pure reducer, no files, no clock.

    view = JobView()
    for event in events: view.feed(event)

`tasks` is [{name, play, role, uuid, ident, started epoch, seconds, hosts}], in order; `hosts` is
{host: {status, seconds, message}} with status running, retrying, ok, changed, failed, ignored, unreachable,
skipped. Tasks that only check arguments are left out unless they fail.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

_ENDS = {
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
    "runner_on_skipped": "skipped",
}
# Steps of the playbook, not of the cluster: nobody waits for them or wants them in a list of what was done.
_QUIET = tuple(
    prefix + action
    for action in ("validate_argument_spec", "include_tasks", "include_role", "set_fact", "set_stats", "spark_options")
    for prefix in ("", "ansible.builtin.", "spark.control.")
)


@dataclass
class JobView:
    """A run after the events fed so far. `percent` 0..100 and `phase` are the running task's own."""

    tasks: list[dict] = field(default_factory=list)
    plays: list[str] = field(default_factory=list)
    phase: str | None = None
    percent: float | None = None
    message: str | None = None
    failed: list[dict] = field(default_factory=list)  # [{host, task, message, status}]
    current_task: str | None = None
    changed: bool = False
    counter: int = 0  # of the last event fed: where to resume
    _index: dict[str, int] = field(default_factory=dict, repr=False)

    def feed(self, event: dict) -> "JobView":
        """Take one event in, as `Job.events()` yields it. Events that were fed already are passed over."""
        if event["counter"] <= self.counter:
            return self
        self.counter = event["counter"]
        kind = event["event"]
        if kind == "playbook_on_play_start":
            self.plays.append(event["play"] or "")
        elif kind in ("playbook_on_task_start", "playbook_on_handler_task_start"):
            self._begin(event)
        elif kind == "runner_on_start":
            self._host(event)["status"] = "running"
        elif kind == "runner_retry":
            self._note(event)
            self._host(event).update(status="retrying", message=_message(event))
        elif kind in ("runner_item_on_failed", "runner_item_on_ok"):
            self._item(event)
        elif kind in _ENDS:
            self._end(event, _ENDS[kind])
        elif kind == "playbook_on_stats":
            self.current_task = self.phase = self.percent = None
        return self

    def feed_all(self, events: Iterable[dict]) -> "JobView":
        """Take several events in."""
        for event in events:
            self.feed(event)
        return self

    def as_dict(self) -> dict:
        """The view as JSON."""
        shown = asdict(self)
        del shown["_index"]
        return shown

    def seconds(self) -> dict[str, float]:
        """How long each task took, by its name; a name that comes twice is added up."""
        total: dict[str, float] = {}
        for task in self.tasks:
            total[task["name"]] = round(total.get(task["name"], 0.0) + (task["seconds"] or 0.0), 3)
        return total

    def _begin(self, event: dict) -> None:
        self.phase = self.percent = None
        if event["action"] in _QUIET:
            return
        self.current_task = event["task"]
        self._task(event)

    def _task(self, event: dict) -> dict:
        key = f"{event['ident']}:{event['task_uuid']}"
        if key not in self._index:
            self._index[key] = len(self.tasks)
            self.tasks.append(
                {
                    "name": event["task"] or "",
                    "play": event["play"],
                    "role": event["role"],
                    "uuid": event["task_uuid"],
                    "ident": event["ident"],
                    "started": event["created"],
                    "seconds": None,
                    "hosts": {},
                }
            )
        return self.tasks[self._index[key]]

    def _host(self, event: dict) -> dict:
        if event["action"] in _QUIET:
            return {}
        hosts = self._task(event)["hosts"]
        return hosts.setdefault(event["host"] or "", {"status": "running", "seconds": None, "message": None})

    def _note(self, event: dict) -> None:
        res = event["res"]
        if res.get("phase"):
            self.phase = str(res["phase"])
        if isinstance(res.get("percent"), int | float):
            self.percent = res["percent"]
        if isinstance(res.get("message"), str) and res["message"]:
            self.message = res["message"]

    def _item(self, event: dict) -> None:
        if event["event"] == "runner_item_on_failed":
            # The loop's own end only says that an item failed; which and why stands here.
            self._host(event)["message"] = _message(event)

    def _end(self, event: dict, status: str) -> None:
        bad = status in ("failed", "unreachable")
        if event["action"] in _QUIET and not bad:
            return
        self._note(event)
        if status == "ok" and event["res"].get("changed"):
            status, self.changed = "changed", True
        if status == "failed" and event["ignored"]:
            status, bad = "ignored", False
        task = self._task(event)
        host = task["hosts"].setdefault(event["host"] or "", {"message": None})
        message = _message(event)
        if bad and host.get("message") and (not message or message.startswith("One or more items failed")):
            message = host["message"]
        host.update(status=status, seconds=event["duration"], message=message)
        if event["created"] and task["started"]:
            task["seconds"] = round(max(task["seconds"] or 0.0, event["created"] - task["started"]), 3)
        if bad:
            said = message or f"{task['name']} failed."
            self.failed.append({"host": event["host"], "task": task["name"], "message": said, "status": status})


def _message(event: dict) -> str | None:
    res = event["res"]
    text = res.get("message") or res.get("msg") or res.get("reason") or res.get("censored")
    if isinstance(text, list):
        text = "\n".join(str(part) for part in text)
    return str(text).removeprefix("Task failed: ") if text else None
