"""A gateway of one's own, as `spark-control serve` runs it, and an upstream that does as a request's X-Behave says."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import PROJECT
from tests.support import wait_for

MODEL = "org/model-1"
EVENT = b'data: {"choices":[{"delta":{"content":"word "}}]}\n\n'
LAST = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,"details":{"a":1}}}\n\n'
DONE = b"data: [DONE]\n\n"
# What serve.py runs, without looks at Sparks that aren't there, and with the bare relay under /relay.
PROGRAM = """
import sys, webui.app
from webui import serve
from webui.gateway.relay import relay, takes, the
port, state, inventory, token = sys.argv[1:]
made = webui.app.create_app

def create_app(config=None):
    app = made(config)
    def bare(path):
        return relay(the().service("qdrant"), "/" + path, endpoint="bare", limit=4 << 30)
    app.add_url_rule("/relay/<path:path>", "bare", takes(None)(bare), methods=["GET", "POST", "PUT", "DELETE"])
    return app

webui.app.create_app = create_app
serve.main("127.0.0.1", int(port), state, config={"INVENTORY": inventory, "TOKEN_FILE": token or None, "LOOKS": False})
"""


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Gateway:
    """Spark Control in a process of its own, in front of an upstream at `port`; `knobs` are the inventory's."""

    def __init__(self, folder: Path, port: int, *, token: Path | None = None, host: str = "127.0.0.1", **knobs):
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.state = free_port(), folder / "state"
        self.inventory, self.log = folder / "hosts.yml", folder / "log"
        known = {"ansible_host": host, "ansible_connection": "local", "vllm_port": port, "qdrant_port": port, **knobs}
        groups = {"hosts": {"spark1": known}}, {"hosts": {"spark1": {}}}
        self.inventory.write_text(json.dumps({"sparks": groups[0], "vllm": groups[1], "qdrant": groups[1]}))
        self.url = f"http://127.0.0.1:{self.port}"
        keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        command = [
            sys.executable,
            "-c",
            PROGRAM,
            str(self.port),
            str(self.state),
            str(self.inventory),
            str(token or ""),
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=keep, cwd=PROJECT, stdout=log, stderr=log)
        wait_for(lambda: self.answers() or self.process.poll() is not None, what="the gateway's start")
        assert self.process.poll() is None, self.log.read_text()

    def answers(self) -> bool:
        """Whether it is there."""
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.url}/healthz", timeout=5).status == 200
        return False

    @property
    def workers(self) -> list[int]:
        """The pids of gunicorn's master and its worker."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [self.process.pid, *map(int, children.split())]

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with those labels."""
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=10).read().decode()
        rows = re.findall(rf"^spark_control_gateway_{name}(\{{.*\}})? (\S+)$", text, re.M)
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(value) for found, value in rows if all(label in found for label in wanted))


@dataclass
class Seen:
    """One request as the upstream got it. closed: when its connection was closed by the gateway, monotonic."""

    method: str
    target: str
    headers: dict
    length: int = 0
    digest: str = ""
    body: bytes = b""
    whole: bool = True
    answering: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)
    closed: float = 0.0


class Upstream:
    """A server on 127.0.0.1 whose every connection is one raw exchange; `seen` are its requests in order."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self.listener.getsockname()[1]
        self.models, self.seen, self.broken = [MODEL], [], False
        self.go = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def asked(self, behave: str) -> list[Seen]:
        """The requests that asked for a behaviour."""
        return [seen for seen in self.seen if seen.headers.get("x-behave") == behave]

    def close(self) -> None:
        """Listen no more."""
        self.listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        with sock, contextlib.suppress(OSError, ValueError):
            file = sock.makefile("rb")
            method, target, _ = file.readline().decode("latin-1").split()
            headers = {}
            while (line := file.readline()).strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.strip().lower()] = value.strip()
            seen = Seen(method, target, headers)
            self.seen.append(seen)
            behave = headers.get("x-behave", "")
            if behave != "early":
                try:
                    self._read(file, seen)
                except (OSError, ValueError):
                    seen.whole = False
                    seen.gone.set()
                    return None
            seen.answering.set()
            if target.startswith("/v1/models") and not self.broken:
                return self._json(sock, 200, {"object": "list", "data": [{"id": name} for name in self.models]})
            getattr(self, "do_" + behave.replace("-", "_"), self.do_)(sock, seen)
            sock.setblocking(True)
        return None

    @staticmethod
    def _read(file, seen):
        digest, kept = hashlib.sha256(), []

        def take(left):
            while left:
                data = file.read1(min(left, 1 << 16))
                if not data:
                    raise ValueError
                left -= len(data)
                digest.update(data)
                seen.length += len(data)
                if seen.length <= 1 << 20:
                    kept.append(data)

        if "chunked" in seen.headers.get("transfer-encoding", ""):
            while size := int(file.readline().split(b";")[0], 16):
                take(size)
                file.readline()
            file.readline()
        else:
            take(int(seen.headers.get("content-length", 0)))
        seen.digest, seen.body = digest.hexdigest(), b"".join(kept)

    @staticmethod
    def _json(sock, status, body, *more):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(data)}", *more]
        sock.sendall("\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + data)

    @staticmethod
    def _events(sock, *events, end=True):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for data in events:
            sock.sendall(b"%x\r\n%b\r\n" % (len(data), data))
        if end:
            sock.sendall(b"0\r\n\r\n")

    @staticmethod
    def _until_gone(sock, seen):
        """Wait for the gateway to close the connection."""
        with contextlib.suppress(OSError):
            while sock.recv(65536):
                pass
        seen.closed = time.monotonic()
        seen.gone.set()

    # What a request can ask for

    def do_(self, sock, seen):
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        told = {"target": seen.target, "headers": seen.headers, "length": seen.length, "digest": seen.digest}
        self._json(sock, 200, {**told, "body": seen.body.decode("latin-1"), "usage": usage})

    def do_headers(self, sock, seen):
        more = ["Connection: X-Hop, close", "X-Hop: 1", "Keep-Alive: 5", "Proxy-Authenticate: x", "Set-Cookie: a=b"]
        more += ["X-Kept: yes", "Access-Control-Allow-Origin: *", "Content-Security-Policy: default-src *"]
        self._json(sock, 200, {}, *more, "X-Request-Id: theirs")

    def do_events(self, sock, seen):
        self._events(sock, EVENT, EVENT, EVENT, LAST, DONE)

    def do_wait(self, sock, seen):
        """One event, then another when told to go on."""
        self._events(sock, EVENT, end=False)
        self.go.wait(20)
        sock.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE))

    def do_halves(self, sock, seen):
        self._events(sock, EVENT[:9], EVENT[9:] + EVENT[:20], EVENT[20:], DONE)

    def do_silent_stream(self, sock, seen):
        self._events(sock, EVENT, end=False)
        self._until_gone(sock, seen)

    def do_silent(self, sock, seen):
        self._until_gone(sock, seen)

    def do_cut_within_an_event(self, sock, seen):
        self._events(sock, EVENT, EVENT[:25], end=False)

    def do_cut_between_events(self, sock, seen):
        self._events(sock, EVENT, end=False)

    def do_end_within_an_event(self, sock, seen):
        self._events(sock, EVENT, EVENT[:25])

    def do_short(self, sock, seen):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{")

    def do_short_and_large(self, sock, seen):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nContent-Length: 50000000\r\n\r\n" + b"x" * 100_000)

    def do_large(self, sock, seen):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nContent-Length: 30000000\r\n\r\n")
        sock.sendall(b"x" * 30_000_000)

    def do_web_page(self, sock, seen):
        page = b"<html><script>alert(1)</script></html>"
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(page) + page)

    def do_plain_500(self, sock, seen):
        sock.sendall(b"HTTP/1.1 500 X\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nInternal Server Error")

    def do_detail_404(self, sock, seen):
        self._json(sock, 404, {"detail": "Not Found"})

    def do_error_400(self, sock, seen):
        self._json(sock, 400, {"error": {"message": "no such tool", "type": "BadRequestError", "code": 400}})

    def do_redirect(self, sock, seen):
        sock.sendall(b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")

    def do_no_http(self, sock, seen):
        sock.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

    def do_many_headers(self, sock, seen):
        sock.sendall(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 5000 + b"\r\n")

    def do_bad_header(self, sock, seen):
        self._json(sock, 200, {}, "X Bad: 1")

    def do_folded_header(self, sock, seen):
        self._json(sock, 200, {}, "X-Folded: a\r\n b")

    def do_early(self, sock, seen):
        self._json(sock, 413, {"error": {"message": "enough", "type": "x", "code": 413}})
        self._until_gone(sock, seen)

    def do_hang_up(self, sock, seen):
        pass
