"""Start a change of the cluster, or say why not: the checks that the pages and the JSON twin share."""

import difflib
import time

from flask import current_app

from webui.core import words
from webui.core.problems import Problem
from webui.jobs import InvalidVariables, JobRunning, UnknownOperation

CHANGES = ("swap", "stop_model")


def known_model(name):
    """The recipe of a model's name. Raises Problem 404, or 503 while nobody has looked at the Sparks yet."""
    if not isinstance(name, str) or not words.NAME.fullmatch(name):
        raise Problem(404, "There is no model of that name.")
    facts = current_app.extensions["cluster"].facts()
    if facts.probe is None:
        current_app.extensions["cluster"].look()
        raise Problem(
            503,
            "The models are not known yet: the first look at the Sparks takes a few seconds.",
            headers={"Retry-After": "5"},
        )
    recipe = next((recipe for recipe in facts.recipes if recipe["name"] == name), None)
    if recipe is None:
        raise Problem(
            404, f"There is no model named {name}.{_meant(name, [recipe['name'] for recipe in facts.recipes])}"
        )
    return recipe


def _meant(name, names):
    """Did you mean …, for the names that are most like one that is none; empty where none is."""
    low = {other.lower(): other for other in names}
    near = [other for other in low if name.lower() in other] or difflib.get_close_matches(name.lower(), low, n=3)
    return f" Did you mean {' or '.join(low[other] for other in near[:3])}?" if near else ""


def running_change():
    """The Job that changes what vLLM serves now, or None."""
    running = current_app.extensions["cluster"].facts(fresh=True).running
    return next((job for job in running if job.operation in CHANGES), None)


def start(operation, variables, *, check=False, background=False, force=False, asked_by="page"):
    """Start a swap, a stop or a lease. Returns its Job.

    Raises Problem 409 with `job_id` and `url` when a swap or a stop runs already, 423 with `holder` and
    `seconds_left` when the GPUs are reserved and `force` is false, 422 for what the playbook's role does not take.
    """
    cluster, store = current_app.extensions["cluster"], current_app.extensions["jobs"]
    exclusive = () if check or operation not in CHANGES else CHANGES
    if exclusive and (job := running_change()):
        raise _busy(job)
    if exclusive and not force:
        refuse_if_leased()
    try:
        job = store.start(
            operation,
            variables,
            check=check,
            diff=check,
            asked_by=asked_by,
            background=background,
            exclusive=exclusive,
        )
    except JobRunning as error:
        raise _busy(error.job) from error
    except InvalidVariables as error:
        raise Problem(422, words.sentence(str(error)), errors=error.errors) from error
    except UnknownOperation as error:
        raise Problem(501, f"This Spark Control has no playbook {operation}.yml.") from error
    cluster.facts(fresh=True)
    cluster.wake()
    return job


def _busy(job):
    titles = current_app.extensions["cluster"].facts().titles
    name = words.name_of(job.operation, job.variables, titles, doing=True)
    return Problem(409, f"{name} is under way. One at a time.", job_id=job.id, url=f"/jobs/{job.id}")


def refuse_if_leased():
    """Raises Problem 423 when somebody has reserved the GPUs."""
    lease = current_app.extensions["cluster"].facts(fresh=True).lease
    if not lease:
        return
    left = max(1, int(lease["expires"] - time.time()))
    # It may have been given back by another road since: the next one who asks gets a fresh answer.
    current_app.extensions["cluster"].look()
    raise Problem(
        423,
        f"The GPUs are reserved by {lease.get('holder')} for another {words.duration(left)}.",
        headers={"Retry-After": str(left)},
        holder=lease.get("holder"),
        purpose=lease.get("purpose"),
        seconds_left=left,
    )
