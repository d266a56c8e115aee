"""Setting a model up: the flags that were inferred from its own files, each with its source, confirmed once."""

import copy
import re
from urllib.parse import urlencode

from flask import Blueprint, redirect, render_template, request

from webui import guard
from webui.core import changes, looks, wishes, words
from webui.core.problems import Problem, wrong_field
from webui.pages import cluster, jobs
from webui.pages.ask import ask, go

pages = Blueprint("setup", __name__)


@pages.get("/setup")
def suggestion():
    """?model=org/name or a local path [&nodes=1|2|4|8] [&look=ID of the look]: the form."""
    guard.refuse_from_elsewhere()
    name = request.args.get("model") or ""
    nodes = request.args.get("nodes")
    wish = wishes.suggestion(name, int(nodes) if nodes in ("1", "2", "4", "8") else None)
    job = _look(request.args.get("look", ""), wish)
    if job is None:
        started = looks.look("suggest_recipe", wish)
        return redirect(f"/setup?{urlencode(wish | {'look': started.id})}", 303)
    result = job.result or {}
    found = result.get("suggestion") or {}
    sparks = len(cluster.inventory().sparks)
    return render_template(
        "setup.html",
        name=name,
        job=job,
        looking=not job.finished,
        again=f"/setup?{urlencode(wish | {'look': job.id})}",
        ok=bool(result.get("ok")),
        message=words.sentence(
            result.get("message") or ("" if not job.finished else "The look ended without an answer")
        ),
        suggestion=found,
        placed=[
            (count, f"/setup?{urlencode({'model': name, 'nodes': count})}") for count in (1, 2, 4, 8) if count <= sparks
        ],
    )


@pages.get("/setup/save")
def ask_save():
    """?look=ID&name=…&flag=…&value-FLAG=…: the recipe as it would be written, as a question."""
    wish, given = _recipe(request.args)
    return ask(
        "save_recipe",
        wish,
        wish["model"],
        f"Save {wish['model']}",
        "/setup/save",
        plan=_plan,
        fields=[(key, value) for key, value in given.items(multi=True) if key != "check"],
        curl=("api/models/recipe", wish),
    )


@pages.post("/setup/save")
def save():
    """Write the recipe, and go to the job."""
    return go(changes.start("save_recipe", _recipe(request.form)[0]))


def _plan(result, question):
    found = [("Saves", [f"{result.get('path')}."])]
    return [
        *found,
        ("Afterwards", [f"{question.title} is among the models, with a Swap button. Nothing is started now."]),
    ]


def _look(job_id, wish):
    """The look at the Sparks of that id, if it was for this model; else None."""
    job = jobs.get(job_id) if words.JOB_ID.fullmatch(job_id) else None
    if not job or job.operation != "suggest_recipe" or job.variables != wish:
        return None
    return job


def _recipe(given):
    """(the variables of save_recipe, what was given): the suggestion, less the flags taken out, with changed values.

    The suggestion is read from its job: a form names flags and values, and nothing of it becomes a command unseen.
    """
    look = given.get("look") or ""
    job = jobs.get(look) if words.JOB_ID.fullmatch(look) else None
    found = ((job.result or {}).get("suggestion") or {}) if job and job.operation == "suggest_recipe" else {}
    if not found.get("recipe"):
        raise Problem(409, "That suggestion is not there any more. Open Set up again.")
    name = (given.get("name") or "").strip()
    if not words.NAME.fullmatch(name):
        raise wrong_field("name", "Expected letters, digits, dots, dashes and underscores.")
    recipe = copy.deepcopy(found["recipe"])
    title = (given.get("title") or "").strip()
    if title and title.isprintable() and len(title) <= 80:
        recipe["name"] = title
    if name != found["name"]:  # it answers to its own name
        served = f"--served-model-name {name.lower()}"
        recipe["command"] = re.sub(r"--served-model-name [^\s{]+", served, recipe["command"], count=1)
    kept = set(given.getlist("flag"))
    for flag in found["flags"]:
        key = flag["flag"].lstrip("-").replace("-", "_")
        if flag["flag"] not in kept:
            recipe["command"] = _without(recipe["command"], flag["words"])
            recipe["defaults"].pop(key, None)
        elif flag["value"] is not None and key in recipe["defaults"]:
            recipe["defaults"][key] = _value(given.get(f"value{flag['flag']}"), recipe["defaults"][key], flag["flag"])
    return {"model": name, "recipe": recipe}, given


def _without(command, part):
    """The command (one line) without one flag's words."""
    return re.sub(r" +", " ", command.replace(part, "", 1)).strip()


def _value(text, before, flag):
    """A value as the suggestion had it by kind: a number stays a number. Raises Problem 422 with the flag."""
    if text is None or text.strip() == "":
        return before
    text = text.strip()
    if isinstance(before, bool | str):
        if not text.isprintable() or len(text) > 200:
            raise wrong_field(flag, "Expected a short text.")
        return text
    try:
        return type(before)(text.replace(",", ""))
    except ValueError:
        raise wrong_field(flag, "Expected a number.") from None
