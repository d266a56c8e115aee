"""The app factory: its parts, what is told of errors, static files."""

import hashlib
import logging
import os
import time
from pathlib import Path

from flask import Flask, Response, abort, redirect, request, send_from_directory
from htmx_flask import Htmx
from werkzeug.exceptions import HTTPException

from webui import guard
from webui.core import problems, words
from webui.core.problems import Problem
from webui.jobs import JobStore, project_folder, state_folder
from webui.watch import Cluster

log = logging.getLogger("spark-control")

YEAR = 365 * 86400
HTMX = {"htmx.js": "htmx-2.min.js", "sse.js": "ext/hx-sse-2.min.js"}


def create_app(config=None):
    """The Flask app.

    config (all optional, environment in brackets): STATE_DIR [SPARK_CONTROL_STATE, var/], PROJECT_DIR
    [SPARK_CONTROL_PROJECT, this repository], INVENTORY [ANSIBLE_INVENTORY], HOSTS [SPARK_CONTROL_HOSTS, comma-separated
    names that the page is reached by], ORIGINS [SPARK_CONTROL_ORIGINS, comma-separated sites whose pages may use the
    gateway], TOKEN_FILE [SPARK_CONTROL_TOKEN_FILE], STREAM_LIMIT, LOOKS (False: no probe.yml, for a gateway alone).
    Nothing runs in the background until app.extensions["cluster"].start() or the first open stream.
    """
    app = Flask(__name__, static_folder=None)
    app.config.update(
        PROJECT_DIR=project_folder(),
        STATE_DIR=state_folder(),
        INVENTORY=os.environ.get("ANSIBLE_INVENTORY"),
        **guard.from_environment(),
        STREAM_LIMIT=128,
        LOOKS=True,
        MAX_CONTENT_LENGTH=64_000,
        MAX_FORM_MEMORY_SIZE=64_000,
    )
    app.config.update(config or {})
    Htmx(app)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True

    store = JobStore(Path(app.config["STATE_DIR"]), Path(app.config["PROJECT_DIR"]))
    cluster = Cluster(store, Path(app.config["PROJECT_DIR"]), app.config["INVENTORY"], app.config["LOOKS"])
    app.extensions.update(jobs=store, cluster=cluster)

    guard.register(app)
    _errors(app)
    _static(app)

    from webui import api, gateway, pages

    pages.register(app)
    api.register(app)
    gateway.register(
        app,
        lambda refused: problems.respond(
            Problem(refused.status, refused.message, headers=refused.headers, **refused.more)
        ),
    )
    return app


def _errors(app):
    from webui.gateway import errors as openai

    @app.errorhandler(Problem)
    def problem(error):
        return openai.from_problem(error) if openai.speaks_openai() else problems.respond(error)

    @app.errorhandler(HTTPException)
    def http(error):
        if isinstance(error.response, Response) or error.code is None or error.code < 400:
            return error
        if error.code in (404, 405) and (meant := _meant(app)):
            return openai.respond(openai.Refused(404, meant, code="unknown_url"))
        headers = {"Allow": ", ".join(sorted(error.valid_methods))} if getattr(error, "valid_methods", None) else {}
        return problem(Problem(error.code, problems.method_or(error.code), headers=headers))

    @app.errorhandler(Exception)
    def other(error):
        log.exception("%s %s", request.method, request.path)
        return problem(Problem(500, problems.method_or(500)))


def _meant(app):
    """What an OpenAI client is told whose base URL lacks /v1, or has something else around it; "" for anybody else."""
    path, base = request.path.rstrip("/"), "/v1/"
    if "text/html" in request.headers.get("Accept", ""):
        return ""
    meant = path[path.rindex(base) :] if base in path[1:] else path if path.startswith(base) else f"/v1{path}"
    if meant == request.path or not app.url_map.bind("").test(meant, request.method):
        return ""
    return (
        f"There is nothing at {request.path[:200]}. The base URL of this API is {request.host_url}v1, so ask {meant}."
    )


def _static(app):
    """/static/NAME is ours, /htmx/NAME is htmx 2 out of the installed django-htmx; both cached for ever by version."""
    import importlib.util

    ours = Path(__file__).parent / "static"
    # The package is located, not imported: only its static folder is used.
    theirs = Path(importlib.util.find_spec("django_htmx").origin).parent / "static" / "django_htmx"
    versions = {}

    def version(path):
        stamp = path.stat().st_mtime_ns
        known = versions.get(path)
        if not known or known[0] != stamp:
            known = versions[path] = (stamp, hashlib.sha256(path.read_bytes()).hexdigest()[:12])
        return known[1]

    def send(folder, name, path):
        response = send_from_directory(folder, path, max_age=0)
        if request.args.get("v") == version(Path(folder) / path):
            response.headers["Cache-Control"] = f"public, max-age={YEAR}, immutable"
        else:
            response.headers["Cache-Control"] = "no-cache"
        return response

    @app.get("/static/<name>", endpoint="static")
    def static(name):
        if not (ours / name).is_file():
            abort(404)
        return send(ours, name, name)

    @app.get("/htmx/<name>", endpoint="htmx")
    def htmx(name):
        if name not in HTMX:
            abort(404)
        return send(theirs, name, HTMX[name])

    @app.get("/favicon.ico")
    def favicon():
        return redirect("/static/icon.svg", 302)

    def asset(name):
        path = theirs / HTMX[name] if name in HTMX else ours / name
        return f"/{'htmx' if name in HTMX else 'static'}/{name}?v={version(path)}"

    app.jinja_env.globals.update(asset=asset, now=time.time, words=words)
    # A global rather than an import: a block that is rendered alone does not run its template's imports.
    app.jinja_env.globals["m"] = app.jinja_env.get_template("macros.html").module
