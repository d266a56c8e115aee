"""POST /api/swap, GET /api/swap/JOB, and /api/swap/lock: swap the model, follow it, reserve the GPUs for a while."""

import hashlib
import secrets
import time

from flask import Blueprint, current_app, jsonify, request

from webui.api.jobs import as_json, find
from webui.core import changes
from webui.core.problems import Problem, body, fields, typed

api = Blueprint("api_swap", __name__)
LONGEST = 7 * 86400  # seconds of a reservation


@api.post("/api/swap")
def swap():
    """Swap the model: 202 with its job. dry_run is a preview that changes nothing."""
    data = fields(body(), {"model", "dry_run", "force"}, ["model"])
    model = typed(data, "model", str, message="Expected the name of a model, as GET /api/models lists them.")
    dry_run = typed(data, "dry_run", bool, False, message="Expected true or false.")
    force = typed(data, "force", bool, False, message="Expected true or false.")
    recipe = changes.known_model(model)
    if recipe.get("error"):
        raise Problem(422, recipe["error"], errors=[{"field": "model", "message": recipe["error"]}])
    variables = {"model": model} | ({"force": True} if force else {})
    return accepted(changes.start("swap", variables, check=dry_run, force=force, asked_by="api"))


@api.get("/api/swap/<job_id>")
def one(job_id):
    """Tell of a swap's job."""
    job = find(job_id)
    if job.operation != "swap":
        raise Problem(404, "There is no such swap.")
    return jsonify(as_json(job))


@api.get("/api/swap/lock")
def lease():
    """Tell who has reserved the GPUs, or null, and as of when that is known."""
    facts = current_app.extensions["cluster"].facts(fresh=True)
    return jsonify(lease=lease_json(facts.lease), at=facts.probed)


@api.post("/api/swap/lock")
def reserve():
    """Reserve the GPUs: 202 with its job and a token, which is told once and kept nowhere."""
    data = fields(body(), {"holder", "purpose", "seconds"}, ["holder", "seconds"])
    holder = _text(data, "holder", 1)
    purpose = _text(data, "purpose", 0)
    seconds = typed(
        data,
        "seconds",
        int,
        check=lambda value: 1 <= value <= LONGEST,
        message=f"Expected whole seconds from 1 to {LONGEST}.",
    )
    changes.refuse_if_leased()
    token = secrets.token_urlsafe(24)
    variables = {
        "state": "present",
        "holder": holder,
        "purpose": purpose,
        "seconds": seconds,
        "token_hash": digest(token),
    }
    return accepted(changes.start("gpu_lease", variables, asked_by="api"), token=token)


@api.delete("/api/swap/lock")
def release():
    """Give the GPUs back: 202 with its job. The token says which reservation."""
    data = fields(body(), {"token"}, ["token"])
    token = typed(
        data, "token", str, check=lambda text: 0 < len(text) <= 200, message="Expected the token of the reservation."
    )
    job = changes.start("gpu_lease", {"state": "absent", "token_hash": digest(token)}, asked_by="api")
    return accepted(job)


def digest(token):
    """What the lease file keeps of a token: its SHA-256 as hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def lease_json(found):
    """What others may know of a lease, with the seconds that are left of it; None without one."""
    if not found:
        return None
    shown = {key: found.get(key) for key in ("holder", "purpose", "expires")}
    return shown | {"seconds_left": max(0, round(found["expires"] - time.time()))}


def accepted(job, **more):
    """202 with where to follow the job."""
    response = jsonify(job_id=job.id, url=f"/jobs/{job.id}", **more)
    response.status_code = 202
    response.headers["Location"] = f"/api/swap/{job.id}" if request.path == "/api/swap" else f"/api/jobs/{job.id}"
    return response


def _text(data, field, least):
    message = f"Expected {'a' if least else 'no or a'} text of at most 80 printable characters."
    return typed(
        data,
        field,
        str,
        "" if not least else None,
        check=lambda text: least <= len(text) <= 80 and text.isprintable(),
        message=message,
    )
