"""A request as it arrives: when its head and its body are there, and what is told of one that is none.

What is HTTP and what is not says gunicorn's parser, which reads what has arrived and never waits for more.
"""

import contextlib
import json
import os
import re
import time
from http import HTTPStatus

import httptools
from gunicorn.http import errors as wrong
from gunicorn.http.body import LengthReader
from gunicorn.http.message import Request
from gunicorn.http.unreader import Unreader

from webui.caller import CONTINUE

ARRIVING = 60.0  # seconds from the first byte of a request to the last one of its head, and of a small body
IDLE = 15.0  # seconds that a connection may be open without a request
PATIENCE = 60.0  # seconds that a thread waits for the next bytes of a long body, or until the next ones are taken
SLOWEST = 1000  # bytes a second of a long body, beyond that patience
HEAD = 64 << 10  # bytes
LINE = 4094  # bytes of its first line
SMALL = 64 << 10  # bytes of a body that are received before a thread is taken
CHUNKED = 4 * SMALL  # bytes of a body in tiny chunks

# The head's end, or a bare line feed, at which gunicorn's parser refuses it.
HEAD_END = re.compile(rb"\r\n\r\n|(?<!\r)\n")
TARGET = re.compile(rb"[^ ]{1,20} (?:[A-Za-z][A-Za-z0-9+.-]*://[^/ ?]*)?(/[^ ?]*)")


class Short(Exception):
    """More bytes are needed than have arrived."""


class Cut(OSError):
    """A body that ends too early, or is wrongly chunked."""


class Refusal(Exception):
    """What is told of a request that reaches no view."""

    def __init__(self, status, text, code=None):
        super().__init__(text)
        self.status, self.text, self.code = status, text, code


class Source(Unreader):
    """What a connection has sent and nobody has taken yet.

    live: a thread has it, and waits for more; ended: none comes. Its wait ends with a TimeoutError after PATIENCE
    seconds of silence, and of a trickle.
    """

    def __init__(self, sock):
        super().__init__()
        self.sock, self.live, self.ended = sock, False, False
        self._waited, self._taken = 0.0, 0

    def __len__(self):
        return self.buf.getbuffer().nbytes

    def add(self, data):
        """More of it has arrived."""
        self.buf.seek(0, os.SEEK_END)
        self.buf.write(data)

    def chunk(self, size_hint=None):
        if not self.live:
            raise Short
        began = time.monotonic()
        data = self.sock.recv(min(max(size_hint or 0, 8192), 1 << 20))
        self._waited += time.monotonic() - began
        self._taken += len(data)
        self.ended = not data
        if self._waited > PATIENCE + self._taken / SLOWEST:
            raise TimeoutError("it comes too slowly")
        return data


class Chunks:
    """Tells, as a chunked body arrives, when it is whole. So is what it does not take for one: that is its reader's."""

    def __init__(self):
        self.size, self.whole = 0, False
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")

    def feed(self, data):
        """Look at more of it."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.whole = True

    def on_body(self, data):
        self.size += len(data)

    def on_message_complete(self):
        self.whole = True


class Incoming:
    """wsgi.input of a body that is still arriving. received: called once, when it has.

    Raises TimeoutError for silence and Cut for no body: both are OSErrors, which werkzeug takes for a client's fault.
    """

    def __init__(self, connection, received):
        self._request, self._source, self._received = connection.request, connection.source, received
        self._asks = self._request._expected_100_continue
        self._request._expected_100_continue = False  # it is told so when somebody wants the body

    def read(self, size=-1):
        """The next bytes, at most `size`; b"" at the end."""
        return self._read(self._request.body.read, size)

    def readline(self, size=-1):
        """The next line."""
        return self._read(self._request.body.readline, size)

    def __iter__(self):
        return iter(self.readline, b"")

    def _read(self, read, size):
        if self._asks:
            self._asks = False
            self._source.sock.sendall(CONTINUE)
        try:
            data = read(size)
        except TimeoutError:
            raise
        except Exception as error:
            raise Cut("it is wrongly chunked, or cut short") from error
        if self._source.ended:  # what is left of it was taken for all of it
            raise Cut("it is cut short")
        if is_read(self._request):
            self.close()
        return data

    def close(self):
        """Nobody reads on."""
        received, self._received = self._received, None
        if received:
            received()


def codings(request):
    """The transfer codings of a request's body, in lower case."""
    told = ",".join(value for name, value in request.headers if name == "TRANSFER-ENCODING")
    return {coding.strip().lower() for coding in told.split(",")}


def is_read(request):
    """Whether the whole of a request's body has been taken from its connection."""
    body, reader = request.body, request.body.reader
    over = reader.length == 0 if isinstance(reader, LengthReader) else not reader.parser
    return over and not body.failed and not request.unreader.ended


class Connection:
    """A client's connection, by turns with the poller and with a thread."""

    def __init__(self, sock, address, server):
        self.sock, self.address, self.server = sock, address, server
        self.source, self.head, self.searched = Source(sock), bytearray(), 0
        self.request = self.chunks = self.body = None
        self.requests, self.path = 0, ""
        self.deadline = time.monotonic() + IDLE
        self.lingers = None  # bytes that may still come, once it has its last answer
        self.stops = 0.0

    @property
    def held(self):
        """Bytes that have arrived of what has not arrived."""
        return len(self.head) + len(self.source)

    @property
    def idle(self):
        """Whether nothing of a request is there. (Some end a body with a line's end too many.)"""
        return self.request is None and not self.head.strip(b"\r\n")

    def receive(self, data):
        """More bytes."""
        if self.idle:
            self.deadline = time.monotonic() + ARRIVING
        if self.request is None:
            self.head += data
        else:
            self.source.add(data)
            if self.chunks:
                self.chunks.feed(data)

    def arrived(self, cfg):
        """Whether a thread can have its next request. Raises Refusal."""
        try:
            return (self.request is not None or self._head(cfg)) and self._body()
        except Short:
            raise Refusal(400, "This is no request in HTTP/1.1.") from None
        except (wrong.ParseException, OSError, ValueError) as error:
            raise told(error) from error

    def _head(self, cfg):
        found = HEAD_END.search(self.head, self.searched)
        strange = self.head and not (self.head[0] == 0x0D or 0x21 <= self.head[0] <= 0x7E)  # TLS, to begin with
        if not (found or strange or len(self.head) > HEAD):
            self.searched = max(0, len(self.head) - 3)
            return False
        target = TARGET.match(self.head)
        self.path = target[1].decode("latin-1") if target else ""
        if strange:
            raise Short
        if not found or found.end() > HEAD:
            raise Refusal(*(LONG_HEAD if b"\n" in self.head[:LINE] else LONG_LINE))
        self.requests += 1
        self.source.add(self.head)
        self.head, self.searched = bytearray(), 0
        self.request = Request(cfg, self.source, self.address, self.requests)
        if not isinstance(self.request.body.reader, LengthReader):
            if {"gzip", "deflate", "compress"} & codings(self.request):
                raise Refusal(501, "This transfer coding is not known here.")
            self.chunks = Chunks()
            self.chunks.feed(self.source.buf.getvalue())
        return True

    def _body(self):
        """Whether the body is there, as self.body; one that is longer than SMALL is left where it is."""
        if self.chunks:
            long = self.chunks.size > SMALL or len(self.source) > CHUNKED
            there = self.chunks.whole
        else:
            length = self.request.body.reader.length
            long, there = length > SMALL, len(self.source) >= length
        if not long and not there:
            if self.request._expected_100_continue:
                self.request._expected_100_continue = False
                with contextlib.suppress(BlockingIOError):
                    self.sock.send(CONTINUE)
            return False
        if not long:
            self.request._expected_100_continue = False
            self.body = self.request.body.read()
        return True

    def next(self):
        """Be ready for the next request; what came of it already stays."""
        self.request = self.chunks = self.body = None
        self.source.live = False
        self.head = bytearray(self.source.take_buffered())
        self.deadline = time.monotonic() + (ARRIVING if self.head else IDLE)


# --- what is told of a request that is none ---------------------------------------------------------------------------

LONG_HEAD = (
    431,
    "A header is longer than 8 kB, all of them than 64 kB, or they are more than 100.",
    "headers_too_large",
)
LONG_LINE = 414, "The address is longer than 4 kB.", "address_too_long"
LATE = 408, f"The request did not arrive within {ARRIVING:g} s.", "timeout"
BUSY = 503, "Too many large requests arrive at once.", "busy"
ENDS = 400, "The request ends too early.", "bad_body"


def told(error):
    """The Refusal for what gunicorn's parser says."""
    if isinstance(error, wrong.LimitRequestLine):
        return Refusal(*LONG_LINE)
    if isinstance(error, wrong.LimitRequestHeaders):
        return Refusal(*LONG_HEAD)
    if isinstance(error, wrong.UnsupportedTransferCoding):
        return Refusal(501, "This transfer coding is not known here.")
    if isinstance(error, wrong.ExpectationFailed):
        return Refusal(417, "Expect: only 100-continue is known here.")
    body = wrong.InvalidChunkSize, wrong.ChunkMissingTerminator, wrong.InvalidChunkExtension, wrong.NoMoreData
    if isinstance(error, body):
        return Refusal(400, "The request's body is cut short, or wrongly chunked.", "bad_body")
    return Refusal(400, f"This is no request in HTTP/1.1: {str(error)[:200]}")


def refusal(refused, path):
    """The bytes of the answer: OpenAI's error object below /v1/, problem details elsewhere."""
    from webui.core import problems  # in the worker only: the master needs none of it
    from webui.gateway import errors

    phrase = HTTPStatus(refused.status).phrase
    if errors.is_openai(path):
        kind, shown = "application/json", errors.body(refused.status, refused.text, code=refused.code)
    else:
        kind = "application/problem+json"
        shown = {"type": "about:blank", "title": phrase, "status": refused.status, "detail": refused.text}
        shown |= problems.as_cohere(path, refused.text)
    data = json.dumps(shown).encode() + b"\n"
    head = [f"HTTP/1.1 {refused.status} {phrase}", f"Content-Type: {kind}", f"Content-Length: {len(data)}"]
    head += ["X-Content-Type-Options: nosniff", "Cache-Control: no-store", "Connection: close"]
    head += ["Retry-After: 2"] if refused.status in (429, 503) else []
    return "\r\n".join([*head, "\r\n"]).encode("latin-1") + data
