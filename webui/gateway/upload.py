"""A request's body as it arrives, in pieces: for an endpoint that takes more than fits into a form."""

from flask import request

from webui.caller import CALLER
from webui.gateway.errors import Refused
from webui.gateway.wire import PIECE, HungUp

ANSWER = 0.05  # seconds in which a client that sends no more tells whether it still reads


class Upload:
    """length: bytes, None = chunked; sent: bytes read so far.

    read() gives up to 1 MiB, b"" at the end. Raises Refused: 413 beyond `limit`, 400 cut short, 408 too slow; and
    HungUp.
    """

    def __init__(self, limit):
        environ = request.environ
        self.stream, self.limit, self.sent = environ["wsgi.input"], limit, 0
        self.caller = environ.get(CALLER)
        self.length = request.content_length
        chunked = "chunked" in request.headers.get("Transfer-Encoding", "").lower()
        if self.length is None and not (chunked and environ.get("wsgi.input_terminated")):
            self.length = 0
        if self.length is not None and self.length > limit:
            raise self._too_large()

    def _too_large(self):
        size = f"{self.limit >> 20} MB" if self.limit >= 1 << 20 else f"{self.limit} bytes"
        return Refused(413, f"The request's body is larger than {size}.", code="request_too_large")

    def read(self):
        # gunicorn receives up to 1 MiB ahead of a body of known length, and copies what is not taken at once.
        size = PIECE if self.length is None else min(1 << 20, self.length - self.sent)
        if not size:
            return b""
        try:
            data = self.stream.read(size)
        except TimeoutError:
            raise Refused(408, "The request's body did not go on, or too slowly.", code="timeout") from None
        except OSError as error:
            raise self._cut("The request's body was cut short or is wrongly chunked.") from error
        if not data and self.length is not None:
            raise self._cut(f"The request's body ends after {self.sent} of {self.length} bytes.")
        self.sent += len(data)
        if self.sent > self.limit:
            raise self._too_large()
        return data

    def _cut(self, text):
        gone = self.caller is not None and self.caller.gone(seconds=ANSWER)
        return HungUp() if gone else Refused(400, text, code="bad_body")

    def __iter__(self):
        return iter(self.read, b"")
