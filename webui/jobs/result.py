"""A job's result: the playbook's own where it set one, else one made of what is known.

Every result has operation, ok, changed and a plain message; the rest is the playbook's business.
"""

from collections.abc import Iterable

from webui.jobs.view import JobView


def finished(
    operation: str, status: str, set_stats: dict | None, view: JobView, complaints: Iterable[str] = ()
) -> dict:
    """The result of a run that ended by itself. `complaints`: Ansible's error lines, if it never began."""
    ok = status == "successful"
    made = {"operation": operation, "ok": ok, "changed": view.changed}
    if isinstance(set_stats, dict):
        found = {**made, "message": _failures(view) or _plain_end(operation, ok, view), **set_stats}
        return found if ok else found | {"ok": False}  # whatever it said before it failed
    if ok:
        return made | {"message": _plain_end(operation, ok, view)}
    problems = [_problem(failure) for failure in view.failed]
    message = _failures(view) or _complaint(operation, complaints)
    return made | {"message": message, "problems": problems}


def cancelled(operation: str, set_stats: dict | None, view: JobView, task: str | None) -> dict:
    """The result of a cancelled run: `set_stats` of the tidying playbook, `task` at which it was cut."""
    where = f" at “{task}”" if task else " before its first task"
    message = f"Cancelled{where}. Run it again: it takes up whatever is there."
    made = {"operation": operation, "changed": view.changed, "message": message, **(set_stats or {})}
    made["message"] = made["message"] or message
    made["operation"] = operation
    return made | {"ok": False, "cancelled": True}


def killed(
    operation: str, set_stats: dict | None, view: JobView, task: str | None, complaints: Iterable[str] = ()
) -> dict:
    """The result of a run whose ansible-playbook came to no end of its own; tidied as after a cancel."""
    why = " ".join(" ".join(complaints).split())[:1000].removeprefix("[ERROR]: ").rstrip(".")
    cut = f"{why or 'ansible-playbook was killed'}{f' at “{task}”' if task else ''}."
    after = (set_stats or {}).get("message") or "Run it again: it takes up whatever is there."
    made = {"changed": view.changed, **(set_stats or {})}
    return made | {"operation": operation, "ok": False, "message": f"{cut} {after}"}


def interrupted(operation: str, view: JobView) -> dict:
    """The result of a run whose supervisor was killed or whose machine went down."""
    where = f" at “{view.current_task}”" if view.current_task else " before its first task"
    message = f"The run was cut off{where}. Run it again: it takes up whatever is there."
    return {"operation": operation, "ok": False, "changed": view.changed, "message": message}


def crashed(operation: str, reason: str) -> dict:
    """The result of a run that the supervisor could not start or see through."""
    return {
        "operation": operation,
        "ok": False,
        "changed": False,
        "message": f"{operation} could not run: {reason}",
    }


def _problem(failure: dict) -> dict:
    code = "unreachable" if failure["status"] == "unreachable" else "failed"
    return {"host": failure["host"], "code": code, "message": failure["message"], "task": failure["task"]}


def _failures(view: JobView) -> str:
    said = []
    for failure in view.failed:
        text = " ".join(failure["message"].split())
        if failure["status"] == "unreachable":
            text = f"{failure['host']} does not answer: {text}"
        else:
            text = f"“{failure['task']}” failed on {failure['host']}: {text}"
        said.append(text if text.endswith((".", "!", "?")) else text + ".")
    return " ".join(dict.fromkeys(said))[:2000]


def _complaint(operation: str, complaints: Iterable[str]) -> str:
    text = " ".join(" ".join(complaints).split())[:1000].removeprefix("[ERROR]: ")
    return f"{operation} did not start: {text}" if text else f"{operation} ended without saying why; see its output."


def _plain_end(operation: str, ok: bool, view: JobView) -> str:
    if not ok:
        return f"{operation} failed."
    return f"{operation} is done; it changed something." if view.changed else f"{operation} is done; nothing changed."
