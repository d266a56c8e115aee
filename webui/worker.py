"""gunicorn's worker here: a request takes a thread once it has arrived, and no half-sent one ever holds one.

One poller accepts connections and receives what they send. A head, with a body of up to 64 kB, is there within a minute
or let go; a longer body is read by the thread that answers, of which only so many may at once. An idle connection costs
a file descriptor, and the one that has waited longest makes room when there are too many. (gunicorn's own threaded
worker waits for heads in its threads, and for the end of a connection in its poller.)
"""

import collections
import contextlib
import errno
import io
import os
import resource
import selectors
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from gunicorn.http import wsgi
from gunicorn.workers.base import Worker

from webui import arrivals, cores
from webui.arrivals import Connection, Incoming, Refusal, is_read, refusal
from webui.caller import CALLER, Caller

LINGER = 30.0  # seconds, and
LINGER_SILENCE = 2.0  # seconds, and
LINGER_BYTES = 256 << 20  # bytes that are still taken in after the last answer, so that it is not lost to a reset
UPLOADS = 64  # long bodies that are received at once
CONNECTIONS = 1000  # open at once, as far as this process may open so many
OTHERS = 400  # files that are no connections of clients: those to services, and what is read and written
HELD = 64 << 20  # bytes of requests that have not arrived
PIECE = 65536
TAKEN = 64  # connections that are accepted in one turn


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


class PollingWorker(Worker):
    """The poller and its threads. Everything but `_answer`, what it calls, and `_post` runs in the main thread."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.waiting = {}  # the connections that the poller has, the one that has waited longest first
        self.open = self.uploading = 0
        self.queue = collections.deque()  # connections with a long body, until there is room for one
        self._posted, self._swept, self._accepts, self._wake = collections.deque(), 0.0, False, None

    def handle_exit(self, sig, frame):
        self.alive = False
        self._wake_up()

    def run(self):
        """Serve until told to stop; then let what is being answered come to its end, for `graceful_timeout` seconds."""
        cores.pin()  # before the first thread for a request is made
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.most = CONNECTIONS if files == resource.RLIM_INFINITY else max(64, min(CONNECTIONS, files - OTHERS))
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
            if self.open >= self.most and not self._make_room():
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
        connection.head, connection.source = bytearray(), arrivals.Source(connection.sock)
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
            self._guarded(self._late, connection)
        while self.queue and self.queue[0].deadline <= now:
            self._refuse(self.queue.popleft(), Refusal(*arrivals.BUSY))
        held = sum(connection.held for connection in self.waiting)
        while held > HELD:
            held -= next(iter(self.waiting)).held
            self._make_room()
        if self.alive:
            self._accepting(True)

    def _late(self, connection):
        if connection.idle or connection.lingers is not None:
            self._drop(connection)
        else:
            self._refuse(connection, Refusal(*arrivals.LATE))

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
                self._refuse(connection, Refusal(*arrivals.ENDS))
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
                connection.deadline = time.monotonic() + arrivals.ARRIVING
                self.queue.append(connection)
            else:
                self._start(connection)
        return None

    def _start(self, connection):
        self.uploading += connection.body is None
        self.threads.submit(self._answer, connection)

    # What threads tell the poller

    def _post(self, act, *values):
        """Have the main thread do something."""
        self._posted.append((act, values))
        self._wake_up()

    def _wake_up(self):
        if self._wake:
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
            connection.sock.settimeout(arrivals.PATIENCE)
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
            if hasattr(pieces, "close"):
                pieces.close()
            self.log.access(answer, answer.req, environ, datetime.now() - began)
        return answer.whole and not answer.should_close()
