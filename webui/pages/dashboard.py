"""The dashboard: what serves, what is wrong, what runs, the Sparks, the models; live over one event stream."""

import threading
import time

from flask import Blueprint, current_app, redirect, render_template
from jinja2_fragments.flask import render_block

from webui.core import fragments, menu, overview, streams, words
from webui.pages import cluster
from webui.pages.progress import running_bar

pages = Blueprint("dashboard", __name__)
FRAGMENTS = ("serving", "running", "sparks", "models", "facts")


@pages.get("/")
def index():
    """The whole page, as it is now."""
    return render_template("dashboard.html", **context(cluster.now()))


@pages.get("/events")
def events():
    """The dashboard's fragments, each when it changed."""
    return streams.respond(current_app.extensions["hub"].stream(streams.watcher()))


@pages.post("/look")
def look():
    """Look at the Sparks again."""
    cluster.look()
    if fragments.asked():
        return "", 204
    return redirect("/", 303)


def context(facts):
    """What dashboard.html needs."""
    now = time.time()
    return {
        "facts": facts,
        "serving": overview.serving(facts),
        "notices": overview.notices(facts, now),
        "running": [running_bar(job, facts, now) for job in facts.running],
        "sparks": overview.sparks(facts),
        "models": menu.rows(facts),
        "folders": [
            (spark["host"], row)
            for spark in (facts.probe or {}).get("sparks") or []
            for row in spark.get("folders") or []
        ],
        "at": now,
    }


class Hub:
    """Renders the dashboard's fragments once for all open dashboards, and wakes their streams when one changed."""

    def __init__(self, app):
        self.app, self.condition = app, threading.Condition()
        self.html, self.versions, self.version = {}, {}, 0
        app.extensions["cluster"].listeners.append(self.publish)
        self.open = 0

    def publish(self, facts):
        """Render from these facts and keep what changed (the ticking texts apart). Nothing without an open stream."""
        if not self.open:
            return
        with self.app.app_context():
            values = context(facts)
            fresh = {name: render_block("dashboard.html", name, **values) for name in FRAGMENTS}
        with self.condition:
            for name, html in fresh.items():
                if name not in self.html or words.still(self.html[name]) != words.still(html):
                    self.version += 1
                    self.html[name], self.versions[name] = html, self.version
            self.condition.notify_all()

    def wake(self):
        """Have every stream look whether it should end."""
        # Not waited for: this is called from a signal handler.
        if self.condition.acquire(blocking=False):
            self.condition.notify_all()
            self.condition.release()

    def stream(self, over):
        """The events of one dashboard: everything at first, then what changed, a `beat` every 15 s."""
        self.open += 1
        try:
            with self.app.extensions["cluster"].watching():
                self.publish(self.app.extensions["cluster"].now())
                sent, beaten = 0, time.monotonic()
                while not over():
                    with self.condition:
                        if self.version == sent:
                            self.condition.wait(timeout=1.0)
                        new = [(name, self.html[name]) for name in FRAGMENTS if self.versions.get(name, 0) > sent]
                        sent = self.version
                    for name, html in new:
                        yield streams.event(name, html)
                    if new or time.monotonic() - beaten >= streams.HEARTBEAT:
                        beaten = time.monotonic()
                        yield streams.event("beat", str(int(time.time())))
        finally:
            self.open -= 1
