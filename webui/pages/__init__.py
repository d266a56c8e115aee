"""What a person sees: the dashboard, the questions before a change, a job, the history."""

from flask import current_app
from werkzeug.local import LocalProxy

jobs = LocalProxy(lambda: current_app.extensions["jobs"])
cluster = LocalProxy(lambda: current_app.extensions["cluster"])


def register(app):
    """Add the pages and their event streams to the app."""
    from webui.pages import ask, dashboard, history, setup, streams, weights

    app.extensions["streams"] = streams.Streams(app.config["STREAM_LIMIT"])
    app.extensions["hub"] = dashboard.Hub(app)
    app.register_blueprint(dashboard.pages)
    for blueprint in (ask.pages, weights.pages, setup.pages, history.pages):
        app.register_blueprint(blueprint)
