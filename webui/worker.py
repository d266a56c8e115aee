"""gunicorn's worker here: a request takes a thread once it has arrived, and no half-sent one ever holds one.

One poller accepts connections and receives what they send. A head, with a body of up to SMALL bytes, is there within
ARRIVING seconds or let go; a longer body is read by the thread that answers, of which only so many may at once. An idle
connection costs a file descriptor, and the oldest of those that wait makes room when there are too many. (gunicorn's
own threaded worker waits for heads in its threads, and for the end of a connection in its poller.)

What is HTTP and what is not says gunicorn's parser; what a caller is told when it is not says `refusal`.
"""

import collections
import contextlib
import errno
import io
import json
import os
import re
import selectors
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from http import HTTPStatus

import httptools
from gunicorn.http import errors as wrong
from gunicorn.http import wsgi
from gunicorn.http.body import LengthReader
from gunicorn.http.message import Request
from gunicorn.http.unreader import Unreader
from gunicorn.workers.base import Worker

from webui import cores
from webui.caller import CALLER, CONTINUE, Caller

ARRIVING = 60.0  # seconds from the first byte of a request to the last one of its head, and of a small body
IDLE = 15.0  # seconds that a connection may be open without a request
PATIENCE = 60.0  # seconds that a thread waits for the next bytes of a long body, or until the next ones are taken
SLOWEST = 1000  # bytes a second of a long body, beyond that patience
LINGER = 30.0  # seconds, and
LINGER_SILENCE = 2.0  # seconds, and
LINGER_BYTES = 256 << 20  # bytes that are still taken in after the last answer, so that it is not lost to a reset
HEAD = 64 << 10  # bytes
LINE = 4094  # bytes of its first line
SMALL = 64 << 10  # bytes of a body that are received before a thread is taken
CHUNKED = 4 * SMALL  # bytes of a body in tiny chunks
UPLOADS = 64  # longer bodies that are received at once
CONNECTIONS = 1000
HELD = 64 << 20  # bytes of requests that have not arrived
PIECE = 65536
TAKEN = 64  # connections that are accepted, and calls of threads that are answered, in one turn

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


def is_read(request):
    """Whether the whole of a request's body has been taken from its connection."""
    body, reader = request.body, request.body.reader
    over = reader.length == 0 if isinstance(reader, LengthReader) else not reader.parser
    return over and not body.failed and not request.unreader.ended


class Answer(wsgi.Response):
    """gunicorn's response, which says that the connection ends where it does, because nobody has read the body."""

    line_ended = True  # whether what was sent ends with a line's end

    def send_headers(self):
        if not self.headers_sent and not is_read(self.req):
            self.force_close()
        super().send_headers()

    def write(self, arg):
        super().write(arg)
        self.line_ended = arg.endswith(b"\n") if arg else self.line_ended

    @property
    def kind(self):
        """The media type."""
        told = next((value for name, value in self.headers if name.lower() == "content-type"), "")
        return told.partition(";")[0].strip().lower()

    @property
    def whole(self):
        """Whether as much was sent as was told."""
        return self.response_length is None or self._omits_body or self.sent == self.response_length


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
        """Whether nothing of a request is there."""
        return self.request is None and not self.head

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
    from webui.api import problems  # in the worker only: the master needs none of it
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


# --- the worker -------------------------------------------------------------------------------------------------------


class PollingWorker(Worker):
    """The poller and its threads. Everything but `_answer` and `_post` runs in the main thread."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.waiting = {}  # the connections that the poller has, the one that has waited longest first
        self.open = self.uploading = 0
        self.queue = collections.deque()  # connections with a long body, until there is room for one
        self._posted, self._swept, self._accepts, self._wake = collections.deque(), 0.0, False, None

    def handle_exit(self, sig, frame):
        self.alive = False
        if self._wake:
            os.write(self._wake[1], b"\0")

    def run(self):
        """Serve until told to stop; then let what is being answered come to its end, for `graceful_timeout` seconds."""
        cores.pin()  # before the first thread for a request is made
        self.threads = ThreadPoolExecutor(self.cfg.threads, "request")
        self.poller = selectors.DefaultSelector()
        self._wake = os.pipe()
        for end in self._wake:
            os.set_blocking(end, False)
        self.poller.register(self._wake[0], selectors.EVENT_READ, self._called)
        self._accepting(True)
        while self.alive and self.ppid == os.getppid():
            self.notify()
            self._turn(1.0)
        self._accepting(False)
        until = time.monotonic() + self.cfg.graceful_timeout
        while self.open and (left := until - time.monotonic()) > 0:
            self.notify()
            self._turn(min(left, 0.2))
        self.threads.shutdown(wait=False, cancel_futures=True)
        for listener in self.sockets:
            listener.close()

    def _turn(self, seconds):
        for key, _ in self.poller.select(seconds):
            if isinstance(key.data, Connection):
                self._guarded(self._ready, key.data)
            else:
                key.data(key.fileobj)
        now = time.monotonic()
        if now - self._swept >= 1.0:
            self._swept = now
            self._sweep(now)

    def _guarded(self, act, connection):
        """What goes wrong with a connection ends it, and nothing else."""
        try:
            act(connection)
        except OSError:
            self._drop(connection)
        except Exception:
            self.log.exception("A connection from %s", connection.address)
            self._drop(connection)

    # Connections come and go

    def _accepting(self, wish):
        if wish != self._accepts:
            self._accepts = wish
            for listener in self.sockets:
                listener.setblocking(False)
                if wish:
                    self.poller.register(listener, selectors.EVENT_READ, self._accept)
                else:
                    self.poller.unregister(listener)

    def _accept(self, listener):
        server = listener.getsockname()
        for _ in range(TAKEN):
            if self.open >= CONNECTIONS and not self._make_room():
                return self._accepting(False)  # all of them are being answered
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and not self._make_room():
                    self._accepting(False)
                return None
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.open += 1
            connection = Connection(sock, address, server)
            self._wait(connection)
            self._guarded(self._ready, connection)  # most send at once
        return None

    def _make_room(self):
        """Let go of the connection that has waited longest; whether there was one."""
        oldest = next(iter(self.waiting), None)
        if oldest is not None:
            self._drop(oldest)
        return oldest is not None

    def _wait(self, connection):
        """Have the poller receive from it."""
        self.waiting[connection] = None
        self.poller.register(connection.sock, selectors.EVENT_READ, connection)

    def _leave(self, connection):
        """Take it from the poller."""
        if connection in self.waiting:
            del self.waiting[connection]
            self.poller.unregister(connection.sock)

    def _drop(self, connection):
        """End it now."""
        if connection.sock.fileno() < 0:
            return
        self._leave(connection)
        with contextlib.suppress(ValueError):
            self.queue.remove(connection)
        self.open -= 1
        connection.sock.close()

    def _finish(self, connection):
        """End it after its last answer: an early close() would reset it, and the client might lose the answer."""
        self._leave(connection)
        connection.lingers = LINGER_BYTES
        connection.head, connection.source = bytearray(), Source(connection.sock)
        now = time.monotonic()
        connection.deadline, connection.stops = now + LINGER_SILENCE, now + LINGER
        try:
            connection.sock.setblocking(False)
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return self._drop(connection)
        return self._wait(connection)

    def _refuse(self, connection, refused):
        self.log.info("%s refused=%d %s", connection.address[0], refused.status, refused.text)
        with contextlib.suppress(OSError):
            connection.sock.send(refusal(refused, connection.path))
        self._finish(connection)

    def _sweep(self, now):
        """Let go of what is late, and of what has waited longest while all of it together is too much."""
        for connection in [one for one in self.waiting if one.deadline <= now]:
            if connection.idle or connection.lingers is not None:
                self._drop(connection)
            else:
                self._refuse(connection, Refusal(*LATE))
        while self.queue and self.queue[0].deadline <= now:
            self._refuse(self.queue.popleft(), Refusal(*BUSY))
        held = sum(connection.held for connection in self.waiting)
        while held > HELD:
            held -= next(iter(self.waiting)).held
            self._make_room()
        if self.alive:
            self._accepting(True)

    # A request arrives

    def _ready(self, connection):
        """It has sent something, or no more."""
        try:
            data = connection.sock.recv(PIECE)
        except BlockingIOError:
            return
        if connection.lingers is not None:
            connection.lingers -= len(data)
            if not data or connection.lingers < 0:
                self._drop(connection)
            else:
                connection.deadline = min(time.monotonic() + LINGER_SILENCE, connection.stops)
            return
        if not data:
            if connection.idle:
                self._drop(connection)
            else:
                self._refuse(connection, Refusal(*ENDS))
            return
        connection.receive(data)
        self._advance(connection)

    def _advance(self, connection):
        """Give it to a thread, once its request has arrived."""
        try:
            arrived = connection.arrived(self.cfg)
        except Refusal as refused:
            return self._refuse(connection, refused)
        if arrived:
            self._leave(connection)
            if connection.body is None and self.uploading >= UPLOADS:
                connection.deadline = time.monotonic() + ARRIVING
                self.queue.append(connection)
            else:
                self._start(connection)
        return None

    def _start(self, connection):
        self.uploading += connection.body is None
        self.nr += 1
        self.threads.submit(self._answer, connection)

    # What threads tell the poller

    def _post(self, act, *values):
        """Have the main thread do something."""
        self._posted.append((act, values))
        with contextlib.suppress(OSError):  # full: it is awake
            os.write(self._wake[1], b"\0")

    def _called(self, pipe):
        with contextlib.suppress(BlockingIOError):
            os.read(pipe, 4096)
        while self._posted:
            act, values = self._posted.popleft()
            act(*values)

    def _received(self):
        """A long body is there, or given up."""
        self.uploading -= 1
        while self.queue and self.uploading < UPLOADS:
            self._start(self.queue.popleft())

    def _answered(self, connection, keep):
        self._guarded(self._again if keep else self._finish, connection)

    def _again(self, connection):
        connection.sock.setblocking(False)
        connection.next()
        self._wait(connection)
        if connection.head:
            self._advance(connection)

    # In a thread

    def _answer(self, connection):
        """Have the app answer a request."""
        keep, incoming, answer = False, None, None
        try:
            if connection.body is None:
                incoming = Incoming(connection, lambda: self._post(self._received))
            connection.source.live = True
            connection.sock.settimeout(PATIENCE)
            where = connection.sock, connection.address, connection.server
            answer, environ = wsgi.create(connection.request, *where, self.cfg, response_class=Answer)
            self._place(environ, connection, incoming)
            environ[CALLER] = Caller(connection.sock, answer)
            if not self.alive:
                answer.force_close()
            keep = self._respond(environ, answer)
        except OSError as error:
            self.log.debug("A connection from %s ended: %s", connection.address, error)
        except Exception:
            self.log.exception("Error handling request")
            if answer is None or not answer.headers_sent:
                with contextlib.suppress(OSError):
                    failed = Refusal(500, "Spark Control met an error of its own. Its log has the details.")
                    connection.sock.sendall(refusal(failed, connection.path))
        finally:
            if incoming is not None:
                incoming.close()
            self._post(self._answered, connection, keep)

    @staticmethod
    def _place(environ, connection, incoming):
        """The body, where a WSGI application looks for it."""
        environ["wsgi.multithread"] = True
        environ.pop("wsgi.file_wrapper", None)
        environ["wsgi.input"] = incoming or io.BytesIO(connection.body)
        if incoming is None and environ.pop("HTTP_TRANSFER_ENCODING", None):
            environ["CONTENT_LENGTH"] = str(len(connection.body))

    def _respond(self, environ, answer):
        """Whether the connection can have another request."""
        began = datetime.now()
        pieces = self.wsgi(environ, answer.start_response)
        try:
            for piece in pieces:
                answer.write(piece)
            answer.close()
        finally:
            with contextlib.suppress(AttributeError):
                pieces.close()
            self.log.access(answer, answer.req, environ, datetime.now() - began)
        return answer.whole and not answer.should_close()
