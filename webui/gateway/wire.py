"""One HTTP exchange with a service, over a socket that watches the client too.

A connection of its own for each exchange: closing it can mean nothing else, and on a LAN opening one costs less than
telling whether an old one still lives. Answers are parsed by httptools (llhttp, Node's parser). A client library cannot
wait for two sockets at once, and takes more time a chunk (tests/bench/bench_gateway.py has httpx beside it).
"""

import contextlib
import select
import socket

import httptools

CONNECT = 3.0  # seconds
PIECE = 65536
HEAD, HEADERS = 65536, 100  # bytes and headers of an answer's head


class HungUp(Exception):
    """The client is gone."""

    status = 499


class Silent(Exception):
    """The upstream sent or took nothing for its service's silence seconds."""


class Answered(Exception):
    """The upstream answers before it has the whole request."""


class Broken(OSError):
    """The answer is no HTTP, or breaks off before its end."""


class Upstream:
    """A connection to a service. Whatever waits on it ends with HungUp when the client is gone.

    client: the Caller, or None. Raises OSError where nothing listens; its methods HungUp, Silent, OSError.
    """

    def __init__(self, service, client):
        self.silence, self.client, self._drained = service.silence, client, True
        self.sock = socket.create_connection((service.address, service.port), CONNECT)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.watched = client.fileno() if client is not None else -1
        self._in, self._out = select.poll(), select.poll()
        self._in.register(self.sock, select.POLLIN)
        self._out.register(self.sock, select.POLLOUT | select.POLLIN)
        if self.watched >= 0:
            for poll in (self._in, self._out):
                # Not POLLIN: a client may send its next request early.
                poll.register(self.watched, client.events)

    def _wait(self, poll):
        """Wait for the upstream; returns its events."""
        while True:
            events = dict(poll.poll(self.silence * 1000))
            if not events:
                raise Silent
            if (told := events.pop(self.watched, None)) is not None:
                if self.client.gone(told):
                    raise HungUp
                for each in (self._in, self._out):
                    each.modify(self.watched, self.client.events)
            if events:
                return next(iter(events.values()))

    def receive(self):
        """The next bytes, up to PIECE; b"" at the end."""
        while True:
            if self._drained:
                self._wait(self._in)
            try:
                data = self.sock.recv(PIECE)
            except BlockingIOError:
                self._drained = True
                continue
            self._drained = len(data) < PIECE
            return data

    def send(self, data):
        """Send all of it. Raises Answered when the upstream has begun to answer instead of taking it."""
        left = memoryview(data)
        while left:
            if self._wait(self._out) & (select.POLLIN | select.POLLHUP | select.POLLERR):
                raise Answered
            with contextlib.suppress(BlockingIOError):
                left = left[self.sock.send(left) :]

    def hang_up(self):
        """End it from another thread: whoever reads gets its end."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.sock.close()


class Reply:
    """A service's answer: its head, then its body as it comes.

    status; headers [(name, value)]; length: bytes of the body, None where only its end tells. Raises Broken, and what
    Upstream raises.
    """

    def __init__(self, upstream, method):
        self.status, self.headers, self.length = 0, [], None
        self._upstream, self._method, self._chunked = upstream, method, False
        self._parser, self._parts, self._begun, self._ended = httptools.HttpResponseParser(self), [], False, False
        received = 0
        while not self._begun:
            data = upstream.receive()
            if not data:
                raise Broken("it ended before its head did")
            received += len(data)
            self._feed(data)
            if len(self.headers) > HEADERS or (not self._begun and received > HEAD):
                raise Broken("its head is too long")

    def header(self, name):
        """The value of the first header of that name (lower case), or ""."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    def read(self):
        """The next bytes of its body; b"" at the end."""
        while not self._parts:
            if self._ended:
                return b""
            data = self._upstream.receive()
            if data:
                self._feed(data)
            elif self._chunked or self.length is not None:
                raise Broken("it broke off before its end")
            else:
                self._ended = True
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        return data

    def _feed(self, data):
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._ended = True
        except httptools.HttpParserError as error:
            if not self._ended:
                raise Broken(f"it is no HTTP: {error}") from error

    # What httptools calls

    def on_header(self, name, value):
        self.headers.append((name.decode("latin-1"), value.decode("latin-1").strip()))

    def on_headers_complete(self):
        self.status = self._parser.get_status_code()
        if self.status in range(100, 200) and self.status != 101:
            return  # "100 Continue" and its kin: the answer comes after it
        self._begun = True
        self._chunked = "chunked" in self.header("transfer-encoding").lower()
        if self._method == "HEAD" or self.status in (204, 304):
            self.length, self._ended = 0, True
        elif not self._chunked and (length := self.header("content-length")):
            self.length = int(length)

    def on_body(self, data):
        self._parts.append(data)

    def on_message_complete(self):
        if self._begun:
            self._ended = True
        else:
            self.headers.clear()
