"""The JSON twin of the pages: the same checks, the same words, the same jobs."""

from webui.api import collections, health, jobs, models, openapi, swap
from webui.core import looks


def register(app):
    """Add /api, /health, /healthz and /openapi.json to the app."""
    app.extensions["looks"] = looks.Looks(app.extensions["jobs"])
    for blueprint in (models.api, swap.api, jobs.api, health.api, collections.api, openapi.api):
        app.register_blueprint(blueprint)
