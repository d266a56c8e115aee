"""The questions before a change: what starts, what stops, for how long, and whether it can work at all."""

import json
import shlex
import threading
import time
from dataclasses import dataclass, field

from flask import Blueprint, make_response, redirect, render_template, request

from webui.api import changes
from webui.api.problems import Problem
from webui.pages import cluster, jobs, words

pages = Blueprint("ask", __name__)
REUSE = 20  # seconds for which a finished preview still tells the truth


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
    return _go(changes.start("swap", {"model": name}))


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
    return _go(changes.start("stop_model", {}))


def _ask(operation, variables, title, verb, action):
    if request.headers.get("Sec-Fetch-Site") == "cross-site" and request.headers.get("Sec-Fetch-Mode") != "navigate":
        raise Problem(403, "This request comes from another site, so it is refused.")
    busy = changes.running_change()
    if busy:
        name = words.name_of(busy.operation, busy.variables, cluster.facts().titles, doing=True)
        return _show(
            Question(
                "busy",
                title,
                verb,
                action,
                message=f"{name} is under way. One at a time.",
                link=(f"/jobs/{busy.id}", "See how far it is"),
            )
        )
    job = _preview(operation, variables, request.args.get("check", ""))
    usual = jobs.expected_seconds(operation, variables)
    question = {
        "title": title,
        "verb": verb,
        "action": action,
        "check": job.id,
        "usual": f"{words.roughly(usual).capitalize()}, going by earlier runs."
        if usual
        else "Usually a few minutes; there is no earlier run to go by.",
        "command": job.command.replace(" --check", "").replace(" --diff", ""),
        "curl": _curl(operation, variables),
    }
    if job.status in ("starting", "running", "cancelling"):
        return _show(Question("checking", **question))
    result = job.result or {}
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
    return _show(Question("ready", message=message, result=result, **question))


_previews, _lock = {}, threading.Lock()


def _preview(operation, variables, check):
    """The preview run to show: the one named, the last one if it is fresh, else a new one."""
    key = (operation, json.dumps(variables, sort_keys=True))
    if words.JOB_ID.fullmatch(check):
        job = jobs.get(check)
        if job and job.check and job.operation == operation and job.variables.get("model") == variables.get("model"):
            return job
    with _lock:
        known = _previews.get(key)
        job = jobs.get(known) if known else None
        if not job or (job.ended and (time.time() - job.ended > REUSE or job.status != "successful")):
            job = changes.start(operation, variables, check=True, background=True)
            _previews[key] = job.id
    return job


def _show(question):
    return render_template("ask.html", question=question, fragment=bool(request.htmx) and not request.htmx.boosted)


def _curl(operation, variables):
    if operation != "swap":
        return ""
    body = shlex.quote(json.dumps(variables))
    return f"curl -X POST {shlex.quote(request.host_url + 'api/swap')} -H 'Content-Type: application/json' -d {body}"


def _go(job):
    if request.htmx:
        response = make_response("", 204)
        response.headers["HX-Redirect"] = f"/jobs/{job.id}"
        return response
    return redirect(f"/jobs/{job.id}", 303)
