"""The relay: a request's bytes to a service and its answer's bytes back, unread, for as long as both sides are there.

One thread an exchange, which waits for both sockets at once: it learns of the client's hang-up the moment it happens
and closes the upstream's connection, by which vLLM frees the slot.
"""

import contextlib
import json
import logging
import math
import re
import threading
import time
import uuid
from dataclasses import dataclass, field, replace

from flask import Response, current_app, g, has_request_context, request

from webui.caller import CALLER
from webui.gateway import errors, services
from webui.gateway.errors import Refused
from webui.gateway.events import Events
from webui.gateway.metrics import Metrics
from webui.gateway.upload import Upload
from webui.gateway.wire import PIECE, Answered, HungUp, Reply, Silent, Upstream

log = logging.getLogger("spark-control.gateway")

TAKES = 300.0  # seconds that a client may take for the next bytes of a stream
TOTAL = 192  # exchanges at once; each holds a thread, and the pages need some too
BUSY_RETRY = 2  # seconds
LONGEST_RETRY = 60  # seconds; the openai package heeds no Retry-After beyond a minute
WHOLE = 1 << 20  # bytes of an answer that are read before its status is passed on, so that a cut one becomes a 502
TAIL = 4096  # bytes of a stream's end in which its token counts are looked for
HELD = 256 << 20  # bytes of request bodies, of all requests together, that are held while their model is looked for

HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
}
# Ours to say, or nobody's business beyond this server.
NOT_UP = HOP_BY_HOP | {"host", "content-length", "expect", "accept-encoding", "cookie", "origin", "referer"}
NOT_UP |= {"x-request-id", "http2-settings"}
NOT_DOWN = HOP_BY_HOP | {
    "content-length",
    "server",
    "date",
    "set-cookie",
    "x-request-id",
    "x-accel-buffering",
    "alt-svc",
}
NOT_DOWN |= {"content-security-policy", "x-frame-options", "x-content-type-options", "referrer-policy"}
NOT_DOWN |= {"permissions-policy", "strict-transport-security", "clear-site-data", "location", "refresh", "link"}
NOT_DOWN_PREFIX = ("access-control-", "cross-origin-", "sec-", "proxy-")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
TARGET = re.compile(r"/[!-~]*")
USAGE = re.compile(rb'(?<!\\)"usage"\s*:\s*(?=\{)')
WEB_PAGE = {"text/html", "application/xhtml+xml"}


def request_id():
    """This request's id: the caller's X-Request-Id if it is a plain one, else one of ours."""
    if "request_id" not in g:
        given = request.headers.get("X-Request-Id", "")
        g.request_id = given if REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
    return g.request_id


class Gateway:
    """What all endpoints share: the services, what is in flight to each, the metrics."""

    def __init__(self, cluster, store, total=TOTAL):
        self.cluster, self.store, self.total = cluster, store, total
        self.metrics = Metrics()
        self.closing = False
        self._lock = threading.Lock()
        self._in_flight, self._held, self._open = {}, 0, set()
        self._expected = {}

    def service(self, key):
        """The Service of that key (services.DEFAULTS). Raises Refused 404 without one, 503 while its model is swapped.

        The cap and the silence are the inventory's as of now.
        """
        inventory = self.cluster.inventory()
        if key != "chat":
            found = services.find(inventory, key)
        else:
            serving, swap = self.cluster.facts().serving, self.cluster.ledger.latest("swap")
            found = services.find(inventory, key, services.sequences(serving, swap[0] if swap else None))
        if found is None:
            raise services.absent(key)
        if key == "chat":
            self.refuse_while_swapping()
        return found

    def refuse_while_swapping(self):
        """Raises Refused 503 while a job changes what vLLM serves: with its address and when it is expected to end."""
        for job in self.cluster.facts().running:
            if job.operation not in ("swap", "stop_model"):
                continue
            newest = self.store.get(job.id)
            if newest is None or newest.finished:  # the facts are half a second old
                continue
            address = f"{request.host_url if has_request_context() else '/'}jobs/{job.id}"
            if job.operation == "stop_model":
                raise Refused(
                    503, f"The model is being stopped: {address}", code="stopping", job_id=job.id, job=address
                )
            left = self.seconds_left(job)
            raise Refused(
                503,
                f"The model is being swapped, for about another {math.ceil(left)} s: {address}",
                code="swapping",
                retry_after=min(left, LONGEST_RETRY),
                job_id=job.id,
                job=address,
                seconds_left=math.ceil(left),
            )

    def seconds_left(self, job):
        """Seconds to a running job's expected end, by those before it; at least 1, and 5 where nothing is known."""
        known = self._expected.get(job.id)
        if known is None:
            model = job.variables.get("model")
            known = self.store.expected_seconds(job.operation, {"model": model} if model else {}) or 0
            self._expected = {job.id: known}
        left = known - (time.time() - job.created)
        return max(1.0, left) if known and left > -5 else 5.0

    @contextlib.contextmanager
    def place(self, service):
        """A place among the requests in flight to a service, for a with statement. Raises Refused 429 without one."""
        self.enter(service)
        try:
            yield
        finally:
            self.leave(service)

    def enter(self, service):
        """Take a place. Raises Refused 429 when the service has its cap, 503 when this server stops or is full."""
        if self.closing:
            raise Refused(503, "Spark Control is being restarted.", code="restarting", retry_after=BUSY_RETRY)
        with self._lock:
            mine, all_of_them = self._in_flight.get(service.key, 0), sum(self._in_flight.values())
            full = mine >= service.cap or all_of_them >= self.total
            if not full:
                self._in_flight[service.key] = mine + 1
        if full:
            what = f"{service.where} has {mine} requests in flight" if mine >= service.cap else "Too much is in flight"
            raise Refused(429, f"{what}. Try again.", code="rate_limit_exceeded", retry_after=BUSY_RETRY)
        self.metrics.in_flight.labels(service.key).inc()

    def leave(self, service):
        """Give the place back."""
        with self._lock:
            self._in_flight[service.key] -= 1
        self.metrics.in_flight.labels(service.key).dec()

    def hold(self, more):
        """Count bytes that are held in memory (negative: no longer). Raises Refused 503 beyond what all may hold."""
        with self._lock:
            if more > 0 and self._held + more > HELD:
                raise Refused(503, "Too many large requests arrive at once.", code="busy", retry_after=BUSY_RETRY)
            self._held += more

    def opened(self, upstream):
        self._open.add(upstream)

    def closed(self, upstream):
        self._open.discard(upstream)

    def close(self):
        """End every exchange: this server stops. Safe in a signal handler."""
        self.closing = True
        for upstream in list(self._open):
            upstream.hang_up()


def the():
    """This app's Gateway."""
    return current_app.extensions["gateway"]


# --- the client's side ------------------------------------------------------------------------------------------------


def caller():
    """The Caller of this request, or None where the WSGI server tells none (a test client), or without a request."""
    return request.environ.get(CALLER) if has_request_context() else None


# --- the upstream's side ----------------------------------------------------------------------------------------------


def request_headers(token):
    """The client's headers that go upstream: [(name, value)]. token: whether Authorization is for us."""
    named = {name.strip().lower() for name in request.headers.get("Connection", "").split(",")}
    gone = NOT_UP | named | ({"authorization"} if token else set())
    kept = []
    for name, value in request.headers:
        lower = name.lower()
        if lower in gone or lower.startswith("sec-") or not NAME.fullmatch(name) or not VALUE.fullmatch(value):
            continue
        kept.append((name, value))
    return kept


def response_headers(response):
    """The upstream's headers that go to the client: [(name, value)]."""
    named = {name.strip().lower() for name in response.header("connection").split(",")}
    return [
        (name, value)
        for name, value in response.headers
        if (lower := name.lower()) not in NOT_DOWN
        and lower not in named
        and not lower.startswith(NOT_DOWN_PREFIX)
        and NAME.fullmatch(name)
        and VALUE.fullmatch(value)
    ]


# --- an exchange ------------------------------------------------------------------------------------------------------


@dataclass
class Account:
    """What is known of an exchange, for the log and the metrics. again: its tokens have been counted before."""

    gateway: Gateway
    service: services.Service
    endpoint: str
    id: str
    method: str
    model: str = ""
    began: float = field(default_factory=time.monotonic)
    status: int = 0
    up: int = 0
    down: int = 0
    first: float | None = None
    tokens: dict = field(default_factory=dict)
    note: str = ""
    again: bool = False
    done: bool = False

    def byte(self, count):
        """Bytes go to the client."""
        if self.first is None and count:
            self.first = time.monotonic() - self.began
        self.down += count

    def close(self):
        """Count and log it, once."""
        if self.done:
            return
        self.done = True
        self.gateway.leave(self.service)
        self.gateway.metrics.exchange(self)
        log.log(
            logging.DEBUG if self.endpoint == "models" else logging.INFO,
            "%s %s %s model=%s status=%d up=%d down=%d first=%s total=%.3f%s",
            self.id,
            self.method,
            self.endpoint,
            json.dumps(self.model[:80]),
            self.status,
            self.up,
            self.down,
            "-" if self.first is None else f"{self.first:.3f}",
            time.monotonic() - self.began,
            f" {self.note}" if self.note else "",
        )


class Exchange:
    """One request and its answer. Closing it, by whatever road, closes the upstream and gives the place back."""

    def __init__(self, gateway, service, endpoint, *, method, model="", client=None, req_id="-"):
        gateway.enter(service)
        self.account = Account(gateway, service, endpoint, req_id, method, model)
        self.gateway, self.service, self.client = gateway, service, client
        self.upstream = self.response = None
        self.whole, self.held = b"", 0

    def open(self, target, headers, body, length):
        """Send the request and read the answer's head. body: pieces of bytes, or None; length: bytes, None = chunked.

        Raises Refused (and HungUp), with everything closed.
        """
        try:
            self._connect()
            self._send(target, headers, body, length)
            self.response = Reply(self.upstream, self.account.method)
            self.account.status = self.response.status
        except BaseException as error:
            self.refuse(error)

    def _connect(self):
        try:
            self.upstream = Upstream(self.service, self.client)
        except OSError as error:
            self.account.note = f"no connection: {error}"
            if self.service.group == "vllm":
                self.gateway.refuse_while_swapping()
            raise Refused(
                503, f"{self.service.where} does not answer at {self.service.url}.", code="service_unavailable"
            ) from error
        self.gateway.opened(self.upstream)
        if self.gateway.closing:
            self.upstream.hang_up()

    def _send(self, target, headers, body, length):
        if not TARGET.fullmatch(target):
            raise Refused(400, "The address of this request is malformed.")
        told = [("X-Request-Id", self.account.id), ("Connection", "close"), ("Accept-Encoding", "identity")]
        if body is not None:
            told.append(("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length)))
        where = f"{self.service.address}:{self.service.port}"
        lines = [f"{self.account.method} {target} HTTP/1.1", f"Host: {where}"]
        lines += [f"{name}: {value}" for name, value in [*headers, *told]]
        head = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
        small = body is not None and length is not None and length < PIECE
        try:
            if not small:
                self.upstream.send(head)
            for piece in [b"".join(map(bytes, body))] if small else filter(len, body or ()):
                self.account.up += len(piece)
                framed = piece if length is not None else b"%x\r\n%b\r\n" % (len(piece), piece)
                self.upstream.send(head + framed if small else framed)  # most requests are one packet
            if body is not None and length is None:
                self.upstream.send(b"0\r\n\r\n")
        except Answered:
            self.account.note = "answered early"

    def refuse(self, error):
        """Close, and raise what the client is to be told of an error."""
        where = self.service.where
        told = error
        if isinstance(error, Refused | HungUp):
            pass
        elif isinstance(error, Silent):
            told = Refused(504, f"{where} sent nothing for {self.service.silence:g} s.", code="upstream_timeout")
        elif isinstance(error, OSError | ValueError):
            if self.gateway.closing:
                told = Refused(503, "Spark Control is being restarted.", code="restarting", retry_after=BUSY_RETRY)
            elif self.service.group == "vllm" and self._swapping():
                told = self._swapping()
            else:
                told = Refused(502, f"{where} broke off, or spoke no HTTP.", code="bad_gateway")
        self.account.status = getattr(told, "status", 499 if isinstance(told, HungUp) else 500)
        self.account.note = self.account.note or type(error).__name__
        self.close()
        if told is error:
            raise error
        raise told from error

    def _swapping(self):
        try:
            self.gateway.refuse_while_swapping()
        except Refused as refused:
            return refused
        return None

    @property
    def kind(self):
        """The answer's media type."""
        return self.response.header("content-type").split(";")[0].strip().lower()

    def read_whole(self, limit):
        """The whole answer, if it has at most `limit` bytes: True when it is in self.whole, False when it is longer.

        What was read of a longer one stays in self.whole and comes first in the iteration.
        """
        parts, size = [], 0
        try:
            while size <= limit:
                data = self.response.read()
                if not data:
                    self.whole = b"".join(parts)
                    return True
                parts.append(data)
                size += len(data)
        except Exception as error:
            self.refuse(error)
        self.whole = b"".join(parts)
        return False

    def hold(self, more):
        """Count bytes of the request that are held in memory. Raises Refused 503 beyond what all may hold."""
        self.gateway.hold(more)
        self.held += more

    def release(self):
        """They are sent, or no longer wanted."""
        held, self.held = self.held, 0
        self.gateway.hold(-held)

    def close(self):
        if self.upstream is not None:
            self.gateway.closed(self.upstream)
            self.upstream.close()
        self.release()
        self.account.close()

    def __del__(self):
        # An iteration that nobody began is not closed by everybody.
        with contextlib.suppress(Exception):
            self.close()


class Stream:
    """The answer's bytes as they come. Of an event stream no event passes half, so that a cut one ends with an error.

    A cut of anything else is passed on as a cut: the client's connection ends where the upstream's did.
    """

    def __init__(self, exchange):
        self.exchange, self.read = exchange, exchange.response.read
        self.events = Events() if exchange.kind == "text/event-stream" else None
        self.tail, self.over = b"", False
        self.first = exchange.whole

    def __iter__(self):
        return self

    def __next__(self):
        while not self.over:
            try:
                data, self.first = self.first or self.read(), b""
                if self.events:
                    data, self.over = (self.events.feed(data), False) if data else (self.events.rest(), True)
                else:
                    self.over = not data
            except HungUp:
                return self._end(499, "HungUp")
            except Exception as error:
                if not (self.events and self.events.is_over(self.tail)):
                    return self._cut(error)
                data, self.over = self.events.rest(), True
            if data:
                self.exchange.account.byte(len(data))
                self.tail = data[-TAIL:] if len(data) >= TAIL else (self.tail + data)[-TAIL:]
                return data
        return self._end()

    def _cut(self, error):
        account, where = self.exchange.account, self.exchange.service.where
        self.over = True
        account.note = f"cut: {type(error).__name__}"
        if not self.events:
            # Nothing that says so fits in here any more, so the connection does.
            if self.exchange.client is not None:
                self.exchange.client.cut()
            return self._end(502)
        status, text = 502, f"{where} broke off in the middle of its answer."
        if isinstance(error, Silent):
            status, text = 504, f"{where} sent nothing for {self.exchange.service.silence:g} s."
        elif self.exchange.gateway.closing:
            status, text = 503, "Spark Control is being restarted."
        account.status = status
        data = b"data: " + json.dumps(errors.body(status, text, code="stream_cut")).encode() + b"\n\n"
        data = b"\n\n" + data if self.events.half else data
        account.byte(len(data))
        return data

    def _end(self, status=None, note=""):
        account = self.exchange.account
        account.status, account.note = status or account.status, note or account.note
        self.over = True
        account.tokens = usage(self.tail)
        self.exchange.close()
        raise StopIteration

    def close(self):
        account = self.exchange.account
        if not account.done:
            # The client's hang-up showed in a failed write.
            account.note, account.tokens = account.note or ("" if self.over else "HungUp"), usage(self.tail)
            account.status = account.status if self.over else 499
        self.exchange.close()


def usage(tail):
    """{"prompt": tokens, "completion": tokens} as an answer's end tells them; empty where it does not."""
    for found in reversed(list(USAGE.finditer(tail))):
        try:
            told, _ = json.JSONDecoder().raw_decode(tail[found.end() :].decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            continue
        names = {"prompt": ("prompt_tokens", "input_tokens"), "completion": ("completion_tokens", "output_tokens")}
        counts = {kind: next((told[n] for n in keys if n in told), None) for kind, keys in names.items()}
        return {kind: n for kind, n in counts.items() if type(n) is int and 0 <= n < 1 << 40}
    return {}


# --- what endpoints call ----------------------------------------------------------------------------------------------


def takes(size):
    """Mark a view as one that reads up to `size` bytes of body itself; the guard's own limit is for forms."""

    def mark(view):
        view.max_body = size
        return view

    return mark


def relay(service, path, *, endpoint, limit, prepare=None, up=True, again=False):
    """The Response of a service to this request, streamed both ways.

    path: absolute, of ours, never of the client's making; endpoint: a fixed word for log and metrics; limit: bytes of
    body; up=False: send no body; again: the answer is one that was counted before. prepare(upload, exchange)
    looks at the body once the request has its place, and gives (pieces of bytes to send, how many bytes they are or
    None = chunked, the model for log and metrics). Raises Refused.
    """
    gateway, client, method = the(), caller(), request.method
    query = request.query_string.decode("latin-1")
    target = f"{path}?{query}" if query else path
    exchange = Exchange(gateway, service, endpoint, method=method, client=client, req_id=request_id())
    exchange.account.again = again
    try:
        body, length = None, 0
        if up:
            body = Upload(limit)
            length = body.length
            if prepare:
                body, length, exchange.account.model = prepare(body, exchange)
        if not up or method in ("GET", "HEAD") or (method == "DELETE" and length == 0):
            body = None
        exchange.open(target, request_headers(current_app.config["TOKEN"]), body, length)
        return _respond(exchange)
    except BaseException as error:
        exchange.account.status = exchange.account.status or getattr(error, "status", 500)
        exchange.close()
        raise


def _respond(exchange):
    response, service = exchange.response, exchange.service
    if exchange.kind in WEB_PAGE:
        exchange.account.note = f"a web page with status {response.status}"
        _bad(exchange, f"{service.where} answered with a web page, not as an API.")
    if response.status < 200 or 300 <= response.status < 400:
        _bad(exchange, f"{service.where} answered with the status {response.status}.")
    headers, wrong = response_headers(response), response.status >= 400
    known = response.length is not None and response.length <= WHOLE
    streams = exchange.kind == "text/event-stream" and not wrong
    if (known or wrong) and not streams and exchange.read_whole(WHOLE):
        data, kind = exchange.whole, None
        if wrong and errors.speaks_openai():
            data, kind = in_shape(service, response.status, exchange.kind, data)
        exchange.account.byte(len(data))
        exchange.account.tokens = usage(data[-TAIL:])
        exchange.close()
        made = Response(data, response.status, headers, direct_passthrough=False)
        if kind:
            made.headers["Content-Type"] = kind
    else:
        length = response.length if not exchange.whole else None
        stream = Stream(exchange)
        made = Response(stream, response.status, headers, direct_passthrough=True)
        if length is not None:
            made.headers["Content-Length"] = str(length)
        made.call_on_close(stream.close)
        if exchange.client is not None:
            exchange.client.patience(TAKES)
    if not response.header("content-type") and not wrong:
        made.headers.remove("Content-Type")
    made.headers["X-Accel-Buffering"] = "no"
    made.headers["X-Request-Id"] = exchange.account.id
    return made


def _bad(exchange, text):
    exchange.account.status = 502
    exchange.close()
    raise Refused(502, text, code="bad_gateway")


def in_shape(service, status, kind, data):
    """A service's error in OpenAI's shape: (bytes, media type or None to leave it as it is)."""
    try:
        told = json.loads(data) if kind.endswith("json") else None
    except (ValueError, RecursionError):
        told = None
    if isinstance(told, dict) and "error" in told:
        return data, None
    detail = told.get("detail") or told.get("message") if isinstance(told, dict) else told
    if detail is None and kind == "text/plain":
        detail = data[:300].decode("utf-8", "replace").strip()
    text = detail if isinstance(detail, str) else json.dumps(detail)[:300] if detail else ""
    text = f"{service.where} answered {status}" + (f": {text}" if text else ".")
    return json.dumps(errors.body(status, text)).encode() + b"\n", "application/json"


def stream(service, path, data, *, endpoint, model=""):
    """The Stream of a service's answer to an object, for a page that shows it as it comes; close() hangs up.

    It counts, is logged and ends with the client as a relayed request does. Raises Refused, also for the service's own
    refusal (with its words) and for an answer that is no event stream (502).
    """
    data = json.dumps(data).encode()
    exchange = Exchange(the(), service, endpoint, method="POST", model=model, client=caller(), req_id=request_id())
    try:
        exchange.open(path, [("Content-Type", "application/json")], [data], len(data))
        if exchange.response.status >= 400 and exchange.kind not in WEB_PAGE and exchange.read_whole(WHOLE):
            told, _ = in_shape(service, exchange.response.status, exchange.kind, exchange.whole)
            raise Refused(exchange.response.status, _message(told) or f"{service.where} refused it.")
        if exchange.response.status != 200 or exchange.kind != "text/event-stream":
            _bad(exchange, f"{service.where} did not answer with an event stream.")
    except BaseException:
        exchange.close()
        raise
    return Stream(exchange)


def _message(data):
    """The words of an error in OpenAI's shape, or ""."""
    try:
        error = json.loads(data)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


@dataclass(frozen=True)
class Answer:
    """A whole answer of a service. headers: {lower-case name: value}."""

    status: int
    headers: dict
    data: bytes

    def json(self):
        """Its JSON. Raises ValueError."""
        return json.loads(self.data)


def ask(service, method, path, data=None, *, endpoint, headers=(), model="", limit=64 << 20, silence=None):
    """One whole Answer of a service, for an endpoint that reads and adapts it. data: bytes, or an object sent as JSON.

    It counts and is logged as a relayed request is, and ends with the client's hang-up (raises HungUp). Outside of a
    request it needs an app context. limit: bytes of answer; silence: seconds, if not the service's. Raises Refused:
    429, 502 (breaks off, a web page, too large), 503 (does not answer), 504. An error status is no exception.
    """
    if silence is not None:
        service = replace(service, silence=silence)
    headers = list(headers)
    if data is not None and not isinstance(data, bytes):
        data = json.dumps(data, separators=(",", ":")).encode()
        headers.append(("Content-Type", "application/json"))
    req_id = request_id() if has_request_context() else f"req-{uuid.uuid4().hex}"
    exchange = Exchange(the(), service, endpoint, method=method, model=model, client=caller(), req_id=req_id)
    try:
        exchange.open(path, headers, None if data is None else [data], len(data or b""))
        if exchange.kind in WEB_PAGE:
            _bad(exchange, f"{service.where} answered with a web page, not as an API.")
        if not exchange.read_whole(limit):
            _bad(exchange, f"{service.where} answered with more than {limit >> 20} MB.")
        exchange.account.byte(len(exchange.whole))
        exchange.account.tokens = usage(exchange.whole[-TAIL:])
        told = {name.lower(): value for name, value in exchange.response.headers}
        return Answer(exchange.response.status, told, exchange.whole)
    finally:
        exchange.close()
