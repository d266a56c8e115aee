"""What a person sees: the dashboard, the questions before a change, a job, the history; search and chat to try."""

from flask import current_app
from werkzeug.local import LocalProxy

jobs = LocalProxy(lambda: current_app.extensions["jobs"])
cluster = LocalProxy(lambda: current_app.extensions["cluster"])


def register(app):
    """Add the pages and their event streams to the app."""
    from webui.core import streams
    from webui.pages import ask, chat, dashboard, history, search, setup, weights

    app.extensions["streams"] = streams.Streams(app.config["STREAM_LIMIT"])
    app.extensions["hub"] = dashboard.Hub(app)
    app.register_blueprint(dashboard.pages)
    chat.register(app)
    # What the inventory has no host for is not there, on the page either.
    app.jinja_env.globals["offers"] = lambda group: bool(app.extensions["cluster"].inventory().groups.get(group))
    for blueprint in (ask.pages, weights.pages, setup.pages, history.pages, search.pages, chat.pages):
        app.register_blueprint(blueprint)
