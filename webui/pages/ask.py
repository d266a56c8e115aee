"""The questions before a change: what starts, what stops, for how long, and whether it can work at all."""

from dataclasses import dataclass, field, replace
from urllib.parse import urlencode

from flask import Blueprint, render_template, request
from markupsafe import Markup

from webui import guard
from webui.core import changes, fragments, looks, words
from webui.core.problems import Problem
from webui.pages import cluster, jobs, roads

pages = Blueprint("ask", __name__)


@dataclass(frozen=True)
class Question:
    """What ask.html shows. state: checking, ready, refused, unchanged, failed, busy."""

    state: str
    title: str
    verb: str
    action: str
    check: str = ""
    message: str = ""
    usual: str = ""
    result: dict = field(default_factory=dict)
    command: str = ""
    curl: str = ""
    link: tuple | None = None
    plan: list = field(default_factory=list)  # (term, [lines]) of what would happen
    again: str = ""  # where to ask once more while the preview runs
    fields: list = field(default_factory=list)  # (name, value) that the form sends
    choices: list = field(default_factory=list)  # (words, address, chosen): the same question, asked otherwise
    danger: bool = False


@pages.get("/models/<name>/swap")
def ask_swap(name):
    """The question before a swap; ?check=ID shows the preview run that was started for it."""
    recipe = changes.known_model(name)
    title = recipe.get("title") or name
    return _ask("swap", {"model": name}, title, f"Swap to {title}", f"/models/{name}/swap")


@pages.post("/models/<name>/swap")
def swap(name):
    """Start the swap and go to its job."""
    recipe = changes.known_model(name)
    if recipe.get("error"):
        raise Problem(422, words.sentence(recipe["error"]))
    return go(changes.start("swap", {"model": name}))


@pages.get("/models/<name>/stop")
def ask_stop(name):
    """The question before the serving model is stopped."""
    title = changes.known_model(name).get("title") or name
    return _ask("stop_model", {}, title, f"Stop {title}", f"/models/{name}/stop")


@pages.post("/models/<name>/stop")
def stop(name):
    """Stop the serving model, if it is still this one."""
    recipe = changes.known_model(name)
    serving = cluster.facts(fresh=True).serving
    if serving and serving.get("model") not in (None, name):
        raise Problem(409, f"{recipe.get('title') or name} is not what serves now: {serving.get('title')} is.")
    return go(changes.start("stop_model", {}))


def _ask(operation, variables, title, verb, action):
    """The question before a swap or a stop."""
    return ask(operation, variables, title, verb, action, plan=_swap_plan, busy=changes.running_change())


def ask(operation, variables, title, verb, action, *, plan, busy=None, curl=None, **more):
    """A question with a preview run behind it.

    plan: the preview's result and the Question -> [(term, [lines])]; busy: a job that stands in the way; curl: (path,
    body) of the JSON twin; more: other fields of the Question, `verb` may be replaced by a callable of the result.
    """
    guard.refuse_from_elsewhere()
    first = verb if isinstance(verb, str) else verb({})
    if busy:
        name = words.name_of(busy.operation, busy.variables, cluster.facts().titles, doing=True)
        told = {"message": f"{name} is under way. One at a time.", "link": (f"/jobs/{busy.id}", "See how far it is")}
        return _show(Question("busy", title, first, action, **told))
    job = _preview(operation, variables, request.args.get("check", ""))
    usual = jobs.expected_seconds(operation, variables)
    result = job.result or {}
    question = more | {
        "title": title,
        "verb": verb if isinstance(verb, str) else verb(result),
        "action": action,
        "check": job.id,
        "again": _again(job.id),
        "usual": f"{words.roughly(usual).capitalize()}, going by earlier runs."
        if usual
        else "Usually a few minutes; there is no earlier run to go by.",
        "command": job.command.replace(" --check", "").replace(" --diff", ""),
        "curl": roads.curl(*(curl or ("api/swap", variables))) if curl or operation == "swap" else "",
    }
    if job.status in ("starting", "running", "cancelling"):
        return _show(Question("checking", **question))
    message = words.sentence(result.get("message") or "")
    if result.get("outcome") == "refused" or (result and not result.get("ok", True)):
        return _show(Question("refused", message=message, result=result, **question))
    if result.get("outcome") == "unchanged":
        return _show(Question("unchanged", message=message, result=result, **question))
    if not result or job.status != "successful":
        told = f"The check did not come to an end: {job.status}."
        return _show(
            Question("failed", message=message or told, link=(f"/jobs/{job.id}", "See what happened"), **question)
        )
    ready = Question("ready", message=message, result=result, **question)
    return _show(replace(ready, plan=plan(result, ready)))


def _swap_plan(result, question):
    stop = result.get("operation") == "stop_model"
    stops = [_stopping(row) for row in result.get("stops") or []]
    found = []
    if not stop:
        nodes = [row["host"] for row in result.get("arithmetic") or []]
        found.append(("Starts", [question.title + (f" on {words.together(nodes)}" if nodes else "")]))
    found.append(("Stops", stops or ["Nothing: no model is serving."]))
    found.append(("Takes", [question.usual + (" Nothing answers meanwhile." if stops and not stop else "")]))
    if stops and not stop:
        titles = [row.get("title") or row.get("model") for row in result["stops"]]
        found.append(("If it fails", [f"{words.together(titles)} is put back."]))
    return found


def _stopping(row):
    """What stops, as a line; Markup, because requests in flight stand out."""
    where = f" on {words.together(row['hosts'])}" if row.get("hosts") else ""
    head = f"{row.get('title') or row.get('model')}{where}"
    if row.get("in_flight"):
        flying = words.plural(row["in_flight"], "request")
        return Markup("{}; <strong>{} in flight</strong>.").format(head, flying)
    return f"{head}; nothing is in flight." if row.get("in_flight") == 0 else f"{head}."


def _again(check):
    """This question's own address with the preview's id in it."""
    query = [(key, value) for key, value in request.args.items(multi=True) if key != "check"]
    return f"{request.path}?{urlencode([*query, ('check', check)])}"


def _preview(operation, variables, check):
    """The preview run to show: the one named, or a look."""
    if words.JOB_ID.fullmatch(check):
        job = jobs.get(check)
        if job and job.check and job.operation == operation and job.variables == variables:
            return job
    return looks.look(operation, variables, check=True)


def _show(question):
    return render_template("ask.html", question=question, fragment=fragments.asked())


def go(job):
    """To the job that was started."""
    return fragments.lead(f"/jobs/{job.id}")
