"""Server-sent events: how one is written, how many may be open, and when one ends."""

import contextlib
import threading

from flask import Response, current_app, request, stream_with_context

from webui.caller import CALLER
from webui.core.problems import Problem

HEARTBEAT = 15.0


class Streams:
    """Counts the open streams of this process. `closing` is set when the server stops, and ends them all."""

    def __init__(self, limit):
        self.limit, self.open, self.closing, self._lock = limit, 0, threading.Event(), threading.Lock()

    def enter(self):
        """Take a place. Raises Problem 503 when none is left."""
        with self._lock:
            if self.open >= self.limit or self.closing.is_set():
                raise Problem(503, "Too many pages are open on this Spark Control.", headers={"Retry-After": "5"})
            self.open += 1

    def leave(self):
        with self._lock:
            self.open -= 1


def event(name, data, number=None):
    """One event as text. data: str, which arrives as it is but that a carriage return becomes a line's end."""
    head = f"id: {number}\n" if number is not None else ""
    lines = data.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return f"{head}event: {name}\n" + "".join(f"data: {line}\n" for line in lines) + "\n"


def respond(generator):
    """A text/event-stream response of the generator's texts; counted, and closed with it."""
    streams = current_app.extensions["streams"]
    streams.enter()

    def body():
        try:
            yield "retry: 2000\n\n"
            yield from generator
        finally:
            with contextlib.suppress(Exception):
                generator.close()

    response = Response(stream_with_context(body()), mimetype="text/event-stream")
    response.call_on_close(streams.leave)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def watcher():
    """A function that tells whether the stream should end: the caller has gone or the server stops."""
    closing, caller = current_app.extensions["streams"].closing, request.environ.get(CALLER)

    def over():
        return closing.is_set() or (caller is not None and caller.gone())

    return over
