"""/api/models: what is on the Sparks and can be swapped to; download, copy, delete, and recipes for what has none."""

import time

from flask import Blueprint, current_app, jsonify, request

from webui.api.swap import accepted
from webui.core import changes, looks, menu, wishes
from webui.core.problems import Problem, body, fields, typed, wrong_field

api = Blueprint("api_models", __name__)
PATIENCE = 20  # seconds that a caller of /api/models/suggest waits


@api.get("/api/models")
def models():
    """List the models on the Sparks and the recipes; `at` is null while nobody has looked at the Sparks yet."""
    cluster = current_app.extensions["cluster"]
    facts = cluster.now()
    if facts.probe is None:
        cluster.look()
    return jsonify(
        at=facts.probed,
        age_seconds=None if facts.probed is None else round(time.time() - facts.probed, 1),
        serving=facts.serving,
        folders={spark["host"]: spark.get("folders") or [] for spark in (facts.probe or {}).get("sparks") or []},
        models=[as_json(row) for row in menu.rows(facts)],
    )


def as_json(row):
    """A model's row as JSON. `name` is what /api/swap takes, null for a model without a recipe."""
    recipe, card = row.recipe, row.card
    kept = ("description", "revision", "served_name", "image", "mode", "min_nodes", "max_nodes")
    return {
        "id": row.id,
        "name": card["recipe"],
        "title": row.title,
        "model": card["name"],
        "kind": card["kind"],
        "repo": card["repo"],
        "status": card["status"],
        "state": row.word,
        "message": row.message or None,
        "serving": row.serving,
        **{key: recipe.get(key) for key in kept},
        "vision": bool(recipe.get("vision") or card["facts"].get("vision")),
        "quantization": recipe.get("quantization") or card["facts"].get("quantization"),
        "facts": card["facts"],
        "source": recipe.get("source"),
        "error": recipe.get("error"),
        "fits": recipe.get("fits"),
        "bytes": card["bytes"],
        "weights": card["hosts"],
        "complete": card["complete"],
        "lacking": card["lacking"],
    }


@api.get("/api/models/suggest")
def suggest():
    """Suggest how to launch a model that has no recipe: every flag with its source and reason.

    422 with the reason where there is none; 503 with `url` of the job and Retry-After where it takes too long. Who asks
    the same at once gets the same answer, and only a few such looks run at once: 503 beyond that.
    """
    nodes = request.args.get("nodes")
    if nodes is not None and nodes not in ("1", "2", "4", "8"):
        raise wrong_field("nodes", "Expected 1, 2, 4 or 8.")
    wish = wishes.suggestion(request.args.get("repo"), int(nodes) if nodes else None)
    job = looks.look("suggest_recipe", wish, asked_by="api")
    deadline = time.monotonic() + PATIENCE
    with looks.the().caller(job):
        while not job.finished:
            if time.monotonic() > deadline:
                raise Problem(503, "The look at the Sparks takes long.", headers=looks.BUSY, url=f"/jobs/{job.id}")
            time.sleep(0.1)
    result = job.result or {}
    if not result.get("suggestion") or not result.get("ok"):
        raise wrong_field("repo", result.get("message") or "There is no suggestion.", url=f"/jobs/{job.id}")
    return jsonify(result["suggestion"])


@api.post("/api/models/recipe")
def save():
    """Save a suggested recipe: 202 with its job. Never over a file that a person wrote."""
    return _start("save_recipe", wishes.recipe, {"model", "recipe"}, ["model", "recipe"])


@api.post("/api/models/delete")
def delete():
    """Delete a model from the Sparks' disks: 202 with its job. Either repo or path."""
    return _start("delete_weights", wishes.deletion, {"repo", "path", "hosts"})


@api.post("/api/models/download")
def download():
    """Download a model from the Hub: 202 with its job."""
    return _start("download_weights", wishes.download, {"repo", "revision", "host", "copy_to"}, ["repo"])


@api.post("/api/models/copy")
def copy():
    """Copy a model to other Sparks: 202 with its job. repo may be a local model's path."""
    return _start("copy_weights", wishes.copy, {"repo", "source", "to", "verify"}, ["repo"])


def _start(operation, check, allowed, required=()):
    data = fields(body(), allowed | {"dry_run"}, required)
    dry_run = typed(data, "dry_run", bool, False, message="Expected true or false.")
    return accepted(changes.start(operation, check(data), check=dry_run, asked_by="api"))
