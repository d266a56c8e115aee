"""GET /api/models: what can be swapped to, and what each model needs."""

import time

from flask import Blueprint, current_app, jsonify

from webui.pages import view

api = Blueprint("api_models", __name__)


@api.get("/api/models")
def models():
    """{at, age_seconds, serving, models: [...]}; at is null while nobody has looked at the Sparks yet."""
    cluster = current_app.extensions["cluster"]
    facts = cluster.facts()
    if facts.probe is None:
        cluster.look()
    return jsonify(
        at=facts.probed,
        age_seconds=None if facts.probed is None else round(time.time() - facts.probed, 1),
        serving=facts.serving,
        models=[as_json(row) for row in view.models(facts)],
    )


def as_json(row):
    """A model's row as JSON."""
    recipe = row.recipe
    kept = ("description", "repo", "revision", "served_name", "image", "mode", "min_nodes", "max_nodes")
    return {
        "name": row.name,
        "title": row.title,
        **{key: recipe.get(key) for key in kept},
        "vision": bool(recipe.get("vision")),
        "quantization": recipe.get("quantization"),
        "source": recipe.get("source"),
        "error": recipe.get("error"),
        "fits": recipe.get("fits"),
        "weights": row.weights,
        "state": row.word,
        "message": row.message or None,
        "serving": row.serving,
    }
