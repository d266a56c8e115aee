"""Finds one field of a JSON object in bytes as they arrive, without making objects of them.

A chat's body may be tens of megabytes of images with its `model` behind them. This looks at no more than the object's
own level, skips everything deeper at tens of megabytes a second, and tells where the value stands.
"""

import json
import re
from itertools import accumulate

WORST = 64 << 10  # bytes of a key or of the value that are looked at
DEEPEST = 500  # brackets within brackets; parsers stop at about a thousand
_SPACE = re.compile(rb"[ \t\r\n]*")
# Possessive, so that they neither go back nor remember: at 50 MB/s and more they never meet a byte twice.
_STRING_REST = re.compile(rb'(?:[^"\\]++|\\.)*+', re.S)
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.S)
_RUN = re.compile(rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+', re.S)
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.S)
_MARK = b"\xef\xbb\xbf"  # a byte order mark in UTF-8, which a JSON parser may pass over (RFC 8259, 8.1)
_BRACKETS = bytes.maketrans(b"[{]}", b"\x01\x01\x00\x00")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = (-1, 1)
_SCALAR_END = re.compile(rb"[ \t\r\n,}\]]")


class Broken(ValueError):
    """Not a JSON object, as far as it was looked at."""


class Finder:
    """feed() bytes until it returns True: the value stands at buffer[start:end], or `over` says there is none.

    buffer: all bytes so far, less a byte order mark; marked: whether there was one. Raises Broken.
    """

    def __init__(self, field):
        self.field, self.buffer = field, bytearray()
        self.start = self.end = None
        self.over = self.marked = False
        self._at = self._depth = 0
        self._expect = "object"
        self._token = None  # where the string or number that is being read began
        self._key = self._value = None

    def feed(self, data):
        """Look at more bytes; whether it is settled."""
        self.buffer += data
        if self._expect == "object" and not self._at and not self.marked and self.buffer[:1] == _MARK[:1]:
            if len(self.buffer) < len(_MARK):
                return False
            if self.buffer.startswith(_MARK):
                del self.buffer[: len(_MARK)]
                self.marked = True
        while self.start is None and not self.over:
            if not self._step():
                return False
        return True

    def value(self):
        """The field's value: a str, or None for any other. Raises Broken."""
        raw = bytes(self.buffer[self.start : self.end])
        if raw[:1] != b'"' or len(raw) > WORST:
            return None
        return self._decode(raw)

    @staticmethod
    def _decode(raw):
        try:
            return json.loads(raw.decode())
        except ValueError as error:
            raise Broken("a string in it is malformed") from error

    def _step(self):
        """Go on by one token; False when more bytes are needed."""
        buffer = self.buffer
        if self._token is not None:
            return self._in_string() if buffer[self._token] == 0x22 else self._in_scalar()
        if self._depth > 1:
            return self._deep()
        self._at = _SPACE.match(buffer, self._at).end()
        if self._at >= len(buffer):
            return False
        byte = buffer[self._at : self._at + 1]
        self._at += 1
        return self._take(byte)

    def _take(self, byte):
        """A byte on the object's own level."""
        expect = self._expect
        if expect == "object" and byte == b"{":
            self._depth, self._expect = 1, "key or end"
        elif expect in ("key", "key or end") and byte == b'"':
            self._token, self._expect = self._at - 1, "key"
        elif expect == "colon" and byte == b":":
            self._expect = "value"
        elif expect == "value" and byte in (b"{", b"["):
            self._depth, self._value = 2, self._at - 1
        elif expect == "value" and (byte == b'"' or byte in b"-0123456789tfn"):
            self._token = self._at - 1
        elif expect == "comma or end" and byte == b",":
            self._expect = "key"
        elif expect in ("comma or end", "key or end") and byte == b"}":
            self.over = True
        else:
            raise Broken(f"it has {byte.decode('latin-1')!r} where {expect} should be")
        return True

    def _deep(self):
        """Skip what is inside of a value: a whole run of it where that does not end the value."""
        begin, end = self._at, _RUN.match(self.buffer, self._at).end()
        if begin == end:
            if begin < len(self.buffer):  # a string that is not all there
                self._token, self._at = begin, begin + 1
                return True
            return False
        brackets = _STRING.sub(b"", self.buffer[begin:end]).translate(_BRACKETS, _NO_BRACKET)
        depths = list(accumulate(map(_STEPS.__getitem__, brackets), initial=self._depth))
        if max(depths) > DEEPEST:
            raise Broken(f"it is nested deeper than {DEEPEST}")
        self._at = end
        if min(depths) > 1:
            self._depth = depths[-1]
            return True
        for token in _TOKEN.finditer(self.buffer, begin, end):
            self._depth += {0x5B: 1, 0x7B: 1, 0x5D: -1, 0x7D: -1}.get(token[0][0], 0)
            if self._depth == 1:
                self._at = token.end()
                break
        self._value_ends(self._value)
        return True

    def _in_string(self):
        buffer = self.buffer
        self._at = _STRING_REST.match(buffer, self._at).end()
        if self._at >= len(buffer) or buffer[self._at] != 0x22:  # or an escape whose second byte is not there
            return False
        self._at += 1
        begin, self._token = self._token, None
        if self._depth == 1:
            self._string_ends(begin)
        return True

    def _in_scalar(self):
        found = _SCALAR_END.search(self.buffer, self._at)
        if not found:
            self._at = len(self.buffer)
            return False
        self._at = found.start()
        begin, self._token = self._token, None
        self._value_ends(begin)
        return True

    def _string_ends(self, begin):
        if self._expect != "key":
            return self._value_ends(begin)
        raw = bytes(self.buffer[begin : self._at]) if self._at - begin <= 8 * len(self.field) + 2 else b'""'
        self._key, self._expect = self._decode(raw), "colon"
        return None

    def _value_ends(self, begin):
        self._expect = "comma or end"
        if self._key == self.field:
            self.start, self.end = begin, self._at
