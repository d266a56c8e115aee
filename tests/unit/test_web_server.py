"""The HTTP server by raw sockets: half requests hold nobody up, refusals can be read, connections end well."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.gateway import DONE, EVENT, MODEL, Upstream, free_port
from tests.support import wait_for

THREADS = 448
PROGRAM = """
import sys
from webui import arrivals, serve, worker
port, state, inventory, *bounds = sys.argv[1:]
config = {"INVENTORY": inventory}
for bound in bounds:
    name, _, value = bound.partition("=")
    module = next((module for module in (arrivals, worker) if hasattr(module, name)), None)
    if module:
        setattr(module, name, type(getattr(module, name))(value))
    else:
        config[name] = int(value)
serve.main("127.0.0.1", int(port), state, config=config)
"""
JSON = {"Content-Type": "application/json"}
CHAT = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).encode()


class Slow(Upstream):
    """An upstream that takes its time, so that a client's half-close is seen before its answer is there."""

    def do_slow(self, sock, seen):
        time.sleep(0.4)
        self.do_(sock, seen)

    def do_slow_events(self, sock, seen):
        self._events(sock, EVENT, end=False)
        time.sleep(0.4)
        sock.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE))


class Server:
    """`spark-control serve` on a port of its own, in front of an upstream, with other bounds than it has."""

    def __init__(self, folder: Path, upstream: Upstream, **bounds):
        self.port, inventory = free_port(), folder / "hosts.yml"
        known = {"ansible_host": "127.0.0.1", "ansible_connection": "local", "vllm_port": upstream.port}
        inventory.write_text(json.dumps({"sparks": {"hosts": {"spark1": known}}, "vllm": {"hosts": {"spark1": {}}}}))
        command = [sys.executable, "-c", PROGRAM, str(self.port), str(folder / "state"), str(inventory)]
        command += [f"{name}={value}" for name, value in bounds.items()]
        keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=keep, cwd=PROJECT, stdout=log, stderr=log)
        wait_for(self.answers, 60, "the server's start")

    def answers(self) -> bool:
        """Whether /healthz does, within a few seconds."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=8) as answer:
                return answer.status == 200
        except OSError:
            return False

    def connect(self) -> socket.socket:
        """A connection."""
        return socket.create_connection(("127.0.0.1", self.port), 30)

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

    def threads(self) -> int:
        """How many threads the worker has."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return len(os.listdir(f"/proc/{children[0]}/task"))

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with those labels."""
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10).read().decode()
        rows = re.findall(rf"^spark_control_gateway_{name}(\{{.*\}})? (\S+)$", text, re.M)
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(value) for found, value in rows if all(label in found for label in wanted))


@pytest.fixture(scope="module")
def upstream():
    made = Slow()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory, upstream):
    """A server as it is."""
    made = Server(tmp_path_factory.mktemp("server"), upstream)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def hasty(tmp_path_factory, upstream):
    """A server that waits for seconds where the other one waits for a minute."""
    bounds = {"ARRIVING": 3.0, "IDLE": 3.0, "PATIENCE": 3.0}
    made = Server(tmp_path_factory.mktemp("hasty"), upstream, **bounds)
    yield made
    made.stop()


def request(method: str, path: str, body: bytes | None = None, **headers: str | None) -> bytes:
    """A request's bytes."""
    given = {"Host": "localhost", **({} if body is None else {"Content-Length": str(len(body))})}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value is not None)]
    return "\r\n".join([*lines, "\r\n"]).encode("latin-1") + (body or b"")


def read_all(sock: socket.socket) -> bytes:
    """Everything until the other side closes."""
    parts = []
    with sock, contextlib.suppress(ConnectionError):
        while data := sock.recv(65536):
            parts.append(data)
    return b"".join(parts)


def read_answer(file) -> tuple[int, dict, bytes]:
    """(status, headers, body) of the next final answer on a connection's file; (0, {}, b"") at its end."""
    while True:
        line = file.readline()
        if not line:
            return 0, {}, b""
        status, headers = int(line.split()[1]), {}
        while (line := file.readline().decode("latin-1").strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if status >= 200:
            break
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(file.readline(), 16):
            body += file.read(size)
            file.readline()
        file.readline()
        return status, headers, body
    return status, headers, file.read(int(headers.get("content-length", 0)))


def ask(server: Server, data: bytes) -> tuple[int, dict, bytes]:
    """The answer to those bytes, on a connection of its own."""
    with server.connect() as sock, sock.makefile("rb") as file:
        sock.sendall(data)
        return read_answer(file)


# --- half requests ----------------------------------------------------------------------------------------------------

SWAP = request("POST", "/api/swap", Content_Length="400", **JSON)
HALVES = {
    "nothing": b"",
    "half a line": b"GET / HT",
    "half a head": b"GET /v1/models HTTP/1.1\r\nHost: x\r\n",
    "half a form": request("POST", "/chat", Content_Length="400") + b"question=",
    "half a JSON body": SWAP + b'{"model"',
    "half a chat": SWAP.replace(b"/api/swap", b"/v1/chat/completions") + b'{"model"',
    "half of the chunks": request("POST", "/api/swap", Transfer_Encoding="chunked", **JSON) + b'8\r\n{"model"\r\n',
    "an expectation": SWAP.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"),
    "half of a second request": request("GET", "/healthz") + b"GET /healthz HTTP/1.1\r\n",
}
MANY = THREADS // len(HALVES) + 10


def test_half_requests_hold_no_thread_and_are_let_go(hasty):
    before = hasty.threads()
    held = [(half, hasty.connect()) for half in HALVES for _ in range(MANY)]
    for half, sock in held:
        sock.sendall(HALVES[half])
    assert hasty.answers()
    assert hasty.threads() < before + MANY / 2
    for half, sock in held[:: MANY // 2]:
        told = read_all(sock)
        assert told == b"" if half == "nothing" else b" 408 " in told, half
    for _, sock in held:
        sock.close()


def test_a_request_that_trickles_has_no_longer_than_one_that_stops(hasty):
    with hasty.connect() as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nX-Long: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                if select.select([sock], [], [], 0.2)[0]:
                    break
                sock.sendall(b"x")
        assert sock.recv(100)[8:13] == b" 408 "


def test_an_idle_connection_holds_no_thread_and_ends(hasty):
    held = [hasty.connect() for _ in range(THREADS + 52)]
    for sock in held:
        sock.sendall(request("GET", "/healthz"))
    assert all(sock.recv(20)[8:13] == b" 200 " for sock in held)
    assert hasty.answers()
    for sock in held:
        assert b"408" not in read_all(sock)


def test_long_bodies_that_stop_leave_the_others_their_threads(hasty):
    head = request("POST", "/v1/chat/completions", Content_Length="900000", **JSON)
    held = [hasty.connect() for _ in range(150)]
    for sock in held:
        sock.sendall(head + b'{"model": "' + b"x" * 100_000)
    assert hasty.answers()
    assert ask(hasty, request("POST", "/v1/chat/completions", CHAT, **JSON))[0] == 200
    told = {read_all(sock)[9:12] for sock in held}
    assert told <= {b"408", b"503"}, told


def test_when_there_are_too_many_the_oldest_makes_room(tmp_path, upstream):
    made = Server(tmp_path, upstream, CONNECTIONS=80)
    try:
        held = [made.connect() for _ in range(100)]
        for sock in held:
            sock.sendall(HALVES["half a head"])
        assert made.answers()
        assert read_all(held[0]) == b""
        held[-1].sendall(b"\r\n")
        assert b" 403 " in held[-1].recv(100)  # it is still there, and x is no name of ours
    finally:
        made.stop()


# --- what is told of a request that is none ---------------------------------------------------------------------------

NO_REQUESTS = [
    (b"GET %s HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 9000 + b"\r\n\r\n", 431),
    (b"GET %s HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 300_000 + b"\r\n\r\n", 431),
    (b"GET %s HTTP/1.1\r\nHost: localhost\r\n" + b"X-Many: x\r\n" * 200 + b"\r\n", 431),
    (b"GET %s?" + b"x" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
    (b"GET %s?" + b"x" * 300_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
    (b"GET %s HTTP/1.1\nHost: localhost\n\n", 400),
    (b"GET %s HTTP/1.1\r\nHost localhost\r\n\r\n", 400),
    (b"GET %s HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", 400),
    (b"GET %s HTTP/3\r\nHost: localhost\r\n\r\n", 400),
    (b"get %s HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    (b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", 400),
    (b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (b"POST %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: br\r\n\r\n", 501),
    (b"POST %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    (b"POST %s HTTP/1.1\r\nHost: localhost\r\nExpect: tea\r\n\r\n", 417),
    (b"POST %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
]


@pytest.mark.parametrize("path", ["/v1/models", "/api/models", "/v2/rerank"])
@pytest.mark.parametrize(("data", "status"), NO_REQUESTS)
def test_what_is_no_request_is_refused_in_the_shape_of_its_address(server, data, status, path):
    told, headers, body = ask(server, data % path.encode() if data.count(b"%") == 1 else data)
    assert (told, headers["connection"]) == (status, "close")
    shown = json.loads(body)
    if path.startswith("/v1/"):
        assert headers["content-type"] == "application/json"
        assert shown["error"]["message"]
        assert shown["error"]["type"] == "invalid_request_error" or status >= 500
    else:
        assert headers["content-type"] == "application/problem+json"
        assert (shown["status"], bool(shown["detail"])) == (status, True)
        assert shown.get("message") == (shown["detail"] if path.startswith("/v2/") else None)


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00", b"\xff\xfe", b"PRI * HTTP/2.0\r\n\r\n"]
)
def test_another_protocol_is_refused_at_once(server, data):
    with server.connect() as sock:
        sock.settimeout(10)  # not after a minute
        sock.sendall(data)
        assert sock.recv(100)[8:13] == b" 400 "


# --- bodies -----------------------------------------------------------------------------------------------------------


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """Those pieces as chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


ADDRESSES = ["/api/swap", "/chat", "/look", "/v1/chat/completions", "/v1/embeddings", "/api/collections/x/documents"]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("size", [1, 100, 63_999, 64_000, 64_001, 65_536, 70_000, 200_000, 3_000_000])
@pytest.mark.parametrize("known", [True, False])
def test_a_body_that_is_cut_short_is_never_taken(server, address, size, known):
    method = "PUT" if address.endswith("documents") else "POST"
    body = (b'{"model": "demo", "question": "x"}' + b" " * size)[:size]
    if known:
        data = request(method, address, Content_Length=str(size + 5), **JSON) + body
    else:
        data = request(method, address, Transfer_Encoding="chunked", **JSON) + chunked(body, end=b"5\r\nab")
    with server.connect() as sock, sock.makefile("rb") as file:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        status, headers, _ = read_answer(file)
        assert status in (400, 404, 413), status
        assert headers["connection"] == "close"


@pytest.mark.parametrize("size", [63_999, 64_000, 64_001, 65_535, 65_536, 65_537, 70_000, 300_000])
@pytest.mark.parametrize("piece", [7, 4096, 1 << 20])
def test_a_chunked_body_is_taken_whole_or_not_at_all(server, size, piece):
    good = b'{"model": "demo-small"}'
    body = good + b" " * (64_000 - len(good)) + b"x" * (size - 64_000) if size > 64_000 else good.ljust(size)
    pieces = [body[i : i + piece] for i in range(0, len(body), piece)]
    status, _, told = ask(server, request("POST", "/api/swap", Transfer_Encoding="chunked", **JSON) + chunked(*pieces))
    assert status in ((503, 404) if size <= 64_000 else (413,)), told  # nobody has looked at the Sparks: no 202 either


def test_a_small_body_is_asked_for_and_a_refused_one_is_not(server):
    with server.connect() as sock:
        sock.sendall(
            request("POST", "/v1/chat/completions", Content_Length=str(len(CHAT)), Expect="100-continue", **JSON)
        )
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(CHAT)
        assert sock.recv(100)[8:13] == b" 200 "
    head = request(
        "POST", "/v1/chat/completions", Content_Length="900000", Expect="100-continue", Content_Type="text/html"
    )
    with server.connect() as sock:
        sock.sendall(head)
        assert sock.recv(100)[8:13] == b" 415 "
    with server.connect() as sock:
        sock.sendall(head.replace(b"text/html", b"application/json"))
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"


# --- the end of a connection ------------------------------------------------------------------------------------------

REFUSED = [
    ("POST", "/v1/chat/completions", b"z" * 200_000, {"Content-Type": "text/plain"}),
    ("POST", "/v1/chat/completions", b"z" * 200_000, JSON),
    ("POST", "/v1/chat/completions", b"[]", JSON),
    ("POST", "/v1/chat/completions", b'{"model": "gpt"}', JSON),
    ("POST", "/v1/chat/completions", b'{"model": "gpt", "a": "' + b"z" * 2_000_000 + b'"}', JSON),
    ("POST", "/v1/nothing", b"z" * 3_000_000, JSON),
    ("POST", "/v1/embeddings", b"z" * 70_000, JSON),
    ("POST", "/api/swap", b"z" * 63_000, JSON),
    ("POST", "/api/swap", b"z" * 70_000, JSON),
    ("POST", "/api/nothing", b"z" * 70_000, JSON),
    ("PUT", "/api/collections/no such/documents", b"z" * 5_000_000, JSON),
    ("POST", "/look", b"z" * 70_000, {"Origin": "http://evil.example"}),
    ("POST", "/look", b"z" * 100, {"Origin": "http://evil.example"}),
    ("DELETE", "/v1/models", b"z" * 10_000, {}),
    ("GET", "/v1/models/none", b"z" * 10_000, {}),
    ("GET", "/nothing", None, {}),
    ("HEAD", "/nothing", None, {}),
]


@pytest.mark.parametrize(("method", "path", "body", "headers"), REFUSED)
@pytest.mark.parametrize("in_chunks", [False, True])
def test_a_connection_is_good_after_a_refusal_or_says_that_it_ends(server, method, path, body, headers, in_chunks):
    path = path.replace(" ", "%20")
    if in_chunks and body is not None:
        pieces = [body[i : i + 9999] for i in range(0, len(body), 9999)]
        data = request(method, path, Transfer_Encoding="chunked", **headers) + chunked(*pieces)
    else:
        data = request(method, path, body, **headers)
    with server.connect() as sock, sock.makefile("rb") as file:
        sock.sendall(data)  # all of it: a client of this kind reads no answer before
        if method == "HEAD":
            told = b""
            while not told.endswith(b"\r\n\r\n"):
                told += file.readline()
            status, closes = int(told.split()[1]), b"connection: close" in told.lower()
        else:
            status, answered, _ = read_answer(file)
            closes = answered["connection"] == "close"
        assert 400 <= status < 500
        if closes:
            assert file.read() == b""
        else:
            sock.sendall(request("GET", "/healthz"))
            assert read_answer(file)[0] == 200


def test_requests_that_come_at_once_are_answered_in_order(server):
    chat = request("POST", "/v1/chat/completions", CHAT, **JSON)
    parts = [request("GET", "/healthz"), chat, request("POST", "/api/swap", b"{}", **JSON), chat]
    with server.connect() as sock, sock.makefile("rb") as file:
        sock.sendall(b"".join(parts) + b"GET /v1/mod")
        assert [read_answer(file)[0] for _ in parts] == [200, 200, 422, 200]
        sock.sendall(b"els HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert read_answer(file)[0] == 200
        assert file.read() == b""


ENDS = [
    request("GET", "/healthz"),
    request("GET", "/"),
    request("GET", "/v1/models"),
    request("GET", "/metrics"),
    request("POST", "/v1/chat/completions", CHAT, **JSON),
    request("POST", "/v1/chat/completions", CHAT, X_Behave="events", **JSON),
    request("POST", "/v1/chat/completions", CHAT, X_Behave="slow", **JSON),
    request("POST", "/v1/chat/completions", CHAT, X_Behave="slow-events", **JSON),
    request("POST", "/v1/chat/completions", CHAT.ljust(300_000), X_Behave="slow", **JSON),
    request("POST", "/chat", b"question=Hello", Content_Type="application/x-www-form-urlencoded"),
    request("POST", "/v1/embeddings", b'{"input": "x"}', **JSON),
]


@pytest.mark.parametrize("data", ENDS, ids=lambda data: data.split(b"\r\n")[0].decode())
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_a_client_that_sends_no_more_gets_its_answer(server, data, version):
    with server.connect() as sock, sock.makefile("rb") as file:
        sock.sendall(data.replace(b"HTTP/1.1", version, 1))
        sock.shutdown(socket.SHUT_WR)
        if version == b"HTTP/1.1":
            status, _, body = read_answer(file)
        else:
            answer = file.read()
            status, body = int(answer[9:12]), answer.partition(b"\r\n\r\n")[2]
        assert status in (200, 303, 404), body
        if b"events" in data:
            events = [line for line in body.splitlines(keepends=True) if not line.startswith(b":")]
            assert b"".join(events).startswith(EVENT)
            assert b"".join(events).endswith(DONE)


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_a_page_that_sends_no_more_gets_its_events_until_it_is_gone(tmp_path, upstream, version):
    made = Server(tmp_path, upstream, STREAM_LIMIT=1)
    page = request("GET", "/events").replace(b"HTTP/1.1", version)
    try:
        with made.connect() as sock:
            sock.sendall(page)
            sock.shutdown(socket.SHUT_WR)
            seen = b""
            while b"event: facts" not in seen or b"\n:\n" not in seen:
                seen += sock.recv(65536)
            assert ask(made, page)[0] == 503  # its place is taken
        wait_for(lambda: first_line(made, page)[9:12] == b"200", 30, "a place for another page")
    finally:
        made.stop()


def first_line(server: Server, data: bytes) -> bytes:
    """The first line of the answer."""
    with server.connect() as sock, sock.makefile("rb") as file:
        sock.sendall(data)
        return file.readline()
