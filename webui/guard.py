"""What every request passes before a view sees it: the host's name, the page's origin, the body's size, the token."""

import hashlib
import hmac
import ipaddress
import os
import re
import socket
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from flask import Response, current_app, redirect, request

from webui.core import problems
from webui.core.problems import Problem

SAFE = {"GET", "HEAD", "OPTIONS"}
VPN = ipaddress.ip_network("100.64.0.0/10")  # what Tailscale and the like hand out
# Nobody can have a name below these in the public DNS: RFC 6761, RFC 6762, ICANN's resolution 2024.07.29.06
# (host.docker.internal), RFC 8375; and StartOS' own, under which its packages reach each other.
PRIVATE = (".localhost", ".local", ".internal", ".home.arpa", ".startos")
# Where a page of another site may ask, if SPARK_CONTROL_ORIGINS names the site.
SHARED = ("/v1", "/v2", "/scrub", "/rehydrate", "/api/search", "/api/audio")
TOLD = "X-Request-Id, Retry-After"  # headers of an answer that such a page may read
PREFLIGHT = 600  # seconds for which a browser remembers that it may
HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._~%-]{1,32})?\]|[A-Za-z0-9._-]{1,255})(?::([0-9]{0,5}))?")
NAME = re.compile(r"\.?(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]{0,30}://([a-z0-9_.-]{1,255}|\[[0-9a-f:.]{2,45}\])(:\d{1,5})?")
FIELDS = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}(\s*,\s*[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}){0,63}")
COOKIE = "spark_control"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True)
class Rules:
    """names: hosts that are ours beside those that always are, a leading dot for all below; origins: that may ask."""

    names: frozenset
    origins: frozenset
    token: str | None


def from_environment():
    """{HOSTS, ORIGINS, TOKEN_FILE}: what the environment says of the rules."""
    names = ("HOSTS", "ORIGINS", "TOKEN_FILE")
    return {name: os.environ.get(f"SPARK_CONTROL_{name}", "") for name in names}


def rules(config):
    """The Rules of a config like from_environment's. Raises SystemExit in plain words."""
    machine = socket.gethostname().lower()
    names = {machine, machine.split(".")[0]}
    for name in _listed(config.get("HOSTS")):
        if not NAME.fullmatch(name) and not _address(name):
            raise SystemExit(
                f"SPARK_CONTROL_HOSTS: {name!r} is no host name. Write it like spark.lan, or .lan for every name "
                "below it, without http:// and without a port; several with commas between them."
            )
        names.add(name.strip("[]") if _address(name) else name.rstrip("."))
    origins = set()
    for origin in _listed(config.get("ORIGINS")):
        match = ORIGIN.fullmatch(origin)
        if not match or int((match[2] or ":0")[1:]) > 65535:
            raise SystemExit(
                f"SPARK_CONTROL_ORIGINS: {origin!r} is no origin. Write it as a browser sends it, like "
                "https://chat.lan, http://192.168.1.5:3000 or app://obsidian.md, without a path and without a "
                "wildcard; several with commas between them."
            )
        origins.add(origin)
    return Rules(frozenset(names), frozenset(origins), read_token(config.get("TOKEN_FILE")))


def _listed(text):
    return [part.strip().lower() for part in str(text or "").split(",") if part.strip()]


def _address(name):
    """The IP address that a name is, or None."""
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None


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
    except UnicodeDecodeError:
        raise SystemExit(f"The token file {path} is no text.") from None
    if len(token) < 16:
        raise SystemExit(f"The token in {path} is shorter than 16 characters.")
    return token


# --- who asks ---------------------------------------------------------------------------------------------------------


def host_allowed(host, names):
    """Whether a Host header names this server: a name below PRIVATE, a loopback or private IP, or one of `names`.

    A page of a stranger that rebinds its DNS name to our address still sends its own name.
    """
    found = HOST.fullmatch(host)
    if not found or int(found[2] or 0) > 65535:
        return False
    name = found[1].lower().strip("[]").rstrip(".")
    if name in names:
        return True
    address = _address(name)
    if address is None:
        below = (*PRIVATE, *(known for known in names if known.startswith(".")))
        return name == "localhost" or name.endswith(below)
    if getattr(address, "ipv4_mapped", None):
        address = address.ipv4_mapped
    return (
        address.is_loopback or address.is_private or address.is_link_local or (address.version == 4 and address in VPN)
    )


def _names_us(address, headers):
    """Whether an Origin or a Referer is of the host that the request asks for. False for what is no address."""
    try:
        where = urlsplit(address).netloc
    except ValueError:
        return False
    return where.lower() == headers.get("Host", "").lower() != ""


def same_origin(headers):
    """Whether an unsafe request comes from our own page or from no page at all (curl)."""
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    if site is not None and site != "none":
        return site == "same-origin"
    return origin is None or _names_us(origin, headers)


def from_elsewhere(headers):
    """Whether a request was caused by a page of another site, as far as a browser tells.

    It sends Sec-Fetch-Site only to https and to localhost; to http://spark.local an image in a stranger's page sends
    nothing but a Referer, and no page has to send that. So what a GET can start is bounded as well.
    """
    if not same_origin(headers):
        return True
    referer = headers.get("Referer")
    return headers.get("Sec-Fetch-Site") is None and bool(referer) and not _names_us(referer, headers)


def refuse_from_elsewhere():
    """Raises Problem 403 for a GET that would start a run because a page of another site says so."""
    if from_elsewhere(request.headers):
        raise Problem(403, "This request comes from another site, so it is refused. Begin on Spark Control's own page.")


def is_shared(path):
    """Whether a page of another site may ask there, if it is named."""
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in SHARED)


def _refuse_origin(origin, named):
    if named:
        raise Problem(403, f"Pages of {origin} may use only {', '.join(SHARED)}.")
    if origin is None or origin.lower() == "null" or not ORIGIN.fullmatch(origin.lower()):
        raise Problem(403, "This request comes from another site, so it is refused.")
    raise Problem(
        403,
        f"This request comes from a page of {origin}, so it is refused. To let the pages of that site use "
        f"{', '.join(SHARED)}, name it in SPARK_CONTROL_ORIGINS.",
    )


def _preflight(origin):
    """What a browser asks before it lets a page of that origin ask."""
    headers = {"Access-Control-Allow-Methods": "GET, POST, PUT, DELETE", "Access-Control-Max-Age": str(PREFLIGHT)}
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    if FIELDS.fullmatch(wanted):
        headers["Access-Control-Allow-Headers"] = wanted
    if request.headers.get("Access-Control-Request-Private-Network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return Response(status=204, headers=headers)


# --- the checks -------------------------------------------------------------------------------------------------------


def register(app):
    """Put the checks in front of every view of the app, by app.config's HOSTS, ORIGINS and TOKEN_FILE."""
    known = rules(app.config)
    app.config["TOKEN"] = token = known.token
    pass_cookie = token and hmac.new(token.encode(), b"spark-control page", hashlib.sha256).hexdigest()

    def named():
        return request.headers.get("Origin", "").lower() in known.origins

    @app.before_request
    def check():
        if not host_allowed(request.headers.get("Host", ""), known.names):
            raise Problem(
                403,
                "Spark Control does not answer under this host name. If it is yours, add it to SPARK_CONTROL_HOSTS.",
            )
        origin, welcome = request.headers.get("Origin"), named() and is_shared(request.path)
        asks_first = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if asks_first and welcome:
            return _preflight(origin)
        if (asks_first or request.method not in SAFE) and not welcome and not same_origin(request.headers):
            _refuse_origin(origin, named())
        _check_size()
        if token and request.endpoint not in ("static", "htmx", "token", "api.healthz") and not admitted():
            raise Problem(
                401, "This Spark Control asks for its token.", headers={"WWW-Authenticate": "Bearer"}, ask_token=True
            )
        return None

    def admitted():
        cookie = request.cookies.get(COOKIE, "")
        return hmac.compare_digest(bearer().encode(), token.encode()) or hmac.compare_digest(
            cookie.encode(), pass_cookie.encode()
        )

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
        if known.origins and is_shared(request.path):
            response.vary.add("Origin")
            if named():
                response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
                response.headers["Access-Control-Expose-Headers"] = TOLD
        return response


def bearer():
    """The token that a request carries, or "": its scheme is in any case (RFC 9110, 11.1)."""
    given = request.headers.get("Authorization", "").split(None, 1)
    return given[-1].strip() if given and (len(given) == 1 or given[0].lower() == "bearer") else ""


def _check_size():
    """Raises Problem 413 for a body that its view does not take. One without a length is longer than a form may be."""
    limit = getattr(
        current_app.view_functions.get(request.endpoint), "max_body", current_app.config["MAX_CONTENT_LENGTH"]
    )
    if limit is None:  # the view reads it piece by piece
        return
    chunked = "chunked" in request.headers.get("Transfer-Encoding", "").lower()
    small = limit <= current_app.config["MAX_CONTENT_LENGTH"]
    if (chunked and small) or (request.content_length or 0) > limit:
        raise Problem(413, problems.method_or(413))
