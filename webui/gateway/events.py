"""An event stream's bytes as they come, passed on where no event is half, so that a cut one can end with an error.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream (a line ends with CR, LF
or both; an empty line ends an event; a line that begins with a colon is a comment).
"""

import json
import re

LARGEST = 256 << 10  # bytes of one event that are held; of a larger one they are passed on as they come
# What stands between events: comments and empty lines, and a byte order mark before the first one.
BETWEEN = re.compile(rb"(?>\xef\xbb\xbf)?(?>(?>:[^\r\n]*+)?(?>\r\n|[\r\n]))*+")
LINE_END = re.compile(rb"\r\n|[\r\n]")
LAST = re.compile(rb"(?:\A|[\r\n])data: ?\[DONE\]\s*\Z")


class Events:
    """half: whether what has been passed on ends within an event, which was larger than LARGEST."""

    def __init__(self):
        self._rest, self.half = b"", False

    def feed(self, data):
        """What can be passed on, now that these bytes are there."""
        data = self._rest + data if self._rest else data
        end = len(data) if data.endswith((b"\n\n", b"\r\n\r\n")) else self._end(data)
        self.half = self.half and not end
        if len(data) - end > LARGEST:
            end, self.half = len(data), True
        self._rest = data[end:]
        return data[:end]

    def _end(self, data):
        pair = max(data.rfind(b"\n\n"), data.rfind(b"\n\r"), data.rfind(b"\r\r"))
        if pair < 0 and self.half:
            return 0
        return BETWEEN.match(data, pair + 2 if pair >= 0 else 0).end()

    def is_over(self, passed):
        """Whether the stream has told its end, `data: [DONE]`. passed: the end of what was passed on."""
        return bool(LAST.search((passed[-64:] + self._rest)[-64:]))

    def rest(self):
        """What is left at the stream's end. Raises ValueError if that is half an event."""
        rest, self._rest = self._rest, b""
        if rest and not rest.endswith((b"\n", b"\r")) and (self.half or not _is_whole(rest)):
            raise ValueError("it ended within an event")
        return rest


def _is_whole(event):
    """Whether only the line ends are missing at an event's end."""
    lines = LINE_END.split(event)
    if lines[-1].startswith(b":"):
        return True
    data = b"\n".join(line[5:] for line in lines if line.startswith(b"data:")).strip()
    if data == b"[DONE]":
        return True
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return lines[-1].startswith(b"data:")
