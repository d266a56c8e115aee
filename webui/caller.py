"""The caller of a request, for whoever takes long to answer it: whether it is still there.

A client that sends no more has gone, or only closed its sending half and reads on (RFC 9112, 9.6): on the wire both are
the same. They differ in what comes back when something is sent, so something is sent that no client minds.
"""

import contextlib
import select
import socket

CALLER = "spark_control.caller"  # its key in a WSGI environ
NO_MORE = getattr(select, "POLLRDHUP", 0)  # Linux; elsewhere a hang-up shows in a failed write
OVER = select.POLLERR | select.POLLHUP | select.POLLNVAL
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
NOTHING = b"2\r\n:\n\r\n"  # a comment of an event stream, as a chunk


class Caller:
    """A client's connection. answer: what is written to it (worker.Answer). For the thread that answers, no other."""

    def __init__(self, sock, answer):
        self.sock, self._answer, self._asked = sock, answer, False

    def fileno(self):
        return self.sock.fileno()

    @property
    def events(self):
        """What a poll should wait for beside errors: that it sends no more, until that is known."""
        return 0 if self._asked else NO_MORE

    def gone(self, events=None, seconds=0.0):
        """Whether it has gone, by the events of a poll, or by asking now and waiting for up to `seconds`.

        False for one that sends no more, at first; it is sent something, and what comes back is a poll's next event.
        """
        if events is None:
            events = self._poll(0)
            if events & NO_MORE and not events & OVER and seconds:
                return self.gone(events) or bool(self._poll(seconds) & OVER)
        if events & OVER:
            return True
        return bool(events & NO_MORE) and not self._asked and not self._ask()

    def _poll(self, seconds):
        poll = select.poll()
        poll.register(self.sock, self.events)
        return next((events for _, events in poll.poll(seconds * 1000)), 0)

    def _ask(self):
        """Send something; whether that went."""
        self._asked = True
        answer, data = self._answer, b""
        if not answer.headers_sent:
            data = CONTINUE if answer.req.version >= (1, 1) else b""
        elif answer.kind == "text/event-stream" and answer.line_ended:
            data = NOTHING if answer.chunked else NOTHING[3:5]
        try:
            self.sock.sendall(data)
        except TimeoutError:  # it takes nothing now, but it is there
            return True
        except OSError:
            return False
        return True

    def patience(self, seconds):
        """How long it may take to send, or to take, the next bytes."""
        self.sock.settimeout(seconds)

    def cut(self):
        """End its connection in the middle of an answer."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
