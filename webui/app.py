"""The app factory, and what every request passes: host and same-origin guard, token, headers, errors, static files."""

import hashlib
import hmac
import ipaddress
import logging
import os
import socket
import stat
import time
from pathlib import Path
from urllib.parse import urlsplit

from flask import Flask, Response, abort, redirect, request, send_from_directory
from htmx_flask import Htmx
from werkzeug.exceptions import HTTPException

from webui.api import problems
from webui.api.problems import Problem
from webui.jobs import JobStore
from webui.pages import words
from webui.watch import Cluster

log = logging.getLogger("spark-control")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
SAFE = {"GET", "HEAD", "OPTIONS"}
VPN = ipaddress.ip_network("100.64.0.0/10")  # what Tailscale and the like hand out
COOKIE = "spark_control"
YEAR = 365 * 86400
HTMX = {"htmx.js": "htmx-2.min.js", "sse.js": "ext/hx-sse-2.min.js"}


def create_app(config=None):
    """The Flask app.

    config (all optional, environment in brackets): STATE_DIR [SPARK_CONTROL_STATE, var/], PROJECT_DIR (this
    repository), INVENTORY [ANSIBLE_INVENTORY], HOSTS [SPARK_CONTROL_HOSTS, comma-separated names that the page is
    reached by], TOKEN_FILE [SPARK_CONTROL_TOKEN_FILE], STREAM_LIMIT, LOOKS (False: no probe.yml, for a gateway alone).
    Nothing runs in the background until app.extensions["cluster"].start() or the first open stream.
    """
    app = Flask(__name__, static_folder=None)
    project = Path(__file__).resolve().parent.parent
    app.config.update(
        PROJECT_DIR=project,
        STATE_DIR=os.environ.get("SPARK_CONTROL_STATE") or project / "var",
        INVENTORY=os.environ.get("ANSIBLE_INVENTORY"),
        HOSTS=os.environ.get("SPARK_CONTROL_HOSTS", ""),
        TOKEN_FILE=os.environ.get("SPARK_CONTROL_TOKEN_FILE"),
        STREAM_LIMIT=128,
        LOOKS=True,
        MAX_CONTENT_LENGTH=64_000,
        MAX_FORM_MEMORY_SIZE=64_000,
    )
    app.config.update(config or {})
    Htmx(app)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.config["TOKEN"] = read_token(app.config["TOKEN_FILE"])

    store = JobStore(Path(app.config["STATE_DIR"]), Path(app.config["PROJECT_DIR"]))
    cluster = Cluster(store, Path(app.config["PROJECT_DIR"]), app.config["INVENTORY"], app.config["LOOKS"])
    app.extensions.update(jobs=store, cluster=cluster)

    _guard(app)
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


def read_token(path):
    """The bearer token in a file of mode 0600, or None without a file. Raises SystemExit in plain words."""
    if not path:
        return None
    try:
        if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
            raise SystemExit(f"{path} can be read by others. Run: chmod 600 {path}")
        token = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SystemExit(f"The token file {path} cannot be read: {error.strerror}.") from error
    if len(token) < 16:
        raise SystemExit(f"The token in {path} is shorter than 16 characters.")
    return token


def host_allowed(host, names):
    """Whether a Host header names this server: localhost, this machine, *.local, a loopback or private IP, or `names`.

    A page of a stranger that rebinds its DNS name to our address still sends its own name.
    """
    try:
        parts = urlsplit("//" + host)
        name, _port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return False
    if not name or "@" in host or "/" in host or "\\" in host:
        return False
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in names or name == "localhost" or name.endswith((".localhost", ".local"))
    if getattr(address, "ipv4_mapped", None):
        address = address.ipv4_mapped
    return (
        address.is_loopback or address.is_private or address.is_link_local or (address.version == 4 and address in VPN)
    )


def same_origin(headers):
    """Whether an unsafe request comes from our own page or from no page at all (curl)."""
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("Origin")
    if origin is not None:
        return urlsplit(origin).netloc.lower() == headers.get("Host", "").lower() != ""
    return True


def _guard(app):
    machine = socket.gethostname().lower()
    names = {machine, machine.split(".")[0]} | {n.strip().lower() for n in app.config["HOSTS"].split(",") if n.strip()}
    token = app.config["TOKEN"]
    pass_cookie = token and hmac.new(token.encode(), b"spark-control page", hashlib.sha256).hexdigest()

    @app.before_request
    def check():
        if not host_allowed(request.headers.get("Host", ""), names):
            raise Problem(
                403,
                "Spark Control does not answer under this host name. If it is yours, add it to SPARK_CONTROL_HOSTS.",
            )
        if request.method not in SAFE and not same_origin(request.headers):
            raise Problem(403, "This request comes from another site, so it is refused.")
        limit = getattr(app.view_functions.get(request.endpoint), "max_body", app.config["MAX_CONTENT_LENGTH"])
        if limit is not None and (request.content_length or 0) > limit:  # None: the view reads it piece by piece
            raise Problem(413, problems.method_or(413))
        if token and request.endpoint not in ("static", "htmx", "token", "api.healthz"):
            given = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
            cookie = request.cookies.get(COOKIE, "")
            if not (
                hmac.compare_digest(given.encode(), token.encode())
                or hmac.compare_digest(cookie.encode(), pass_cookie.encode())
            ):
                raise Problem(
                    401,
                    "This Spark Control asks for its token.",
                    headers={"WWW-Authenticate": "Bearer"},
                    ask_token=True,
                )
        return

    @app.post("/token", endpoint="token")
    def token_form():
        if token and hmac.compare_digest(request.form.get("token", "").strip().encode(), token.encode()):
            response = redirect("/", 303)
            response.set_cookie(COOKIE, pass_cookie, max_age=90 * 86400, httponly=True, samesite="Strict")
            return response
        if token:
            time.sleep(0.5)  # makes guessing slow
        raise Problem(401, "That is not the token.", ask_token=True)

    @app.after_request
    def headers(response):
        for key, value in HEADERS.items():
            response.headers.setdefault(key, value)
        response.headers.setdefault("Cache-Control", "no-store")
        return response


def _errors(app):
    @app.errorhandler(Problem)
    def problem(error):
        from webui.gateway import errors

        return errors.from_problem(error) if errors.speaks_openai() else problems.respond(error)

    @app.errorhandler(HTTPException)
    def http(error):
        if isinstance(error.response, Response) or error.code is None or error.code < 400:
            return error
        headers = {"Allow": ", ".join(sorted(error.valid_methods))} if getattr(error, "valid_methods", None) else {}
        return problem(Problem(error.code, problems.method_or(error.code), headers=headers))

    @app.errorhandler(Exception)
    def other(error):
        log.exception("%s %s", request.method, request.path)
        return problem(Problem(500, problems.method_or(500)))


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
