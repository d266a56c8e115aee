"""An event stream is passed on as it comes, whatever its line ends, and never with half an event at its end."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webui.gateway.events import LARGEST, Events

ENDS = [b"\n", b"\r\n", b"\r"]
LINES = st.sampled_from(
    [b"", b": ping", b":", b'data: {"a": 1}', b"data: x", b"data", b"event: e", b"id: 7", b"::", b"x:"]
)
LINE = st.tuples(LINES, st.sampled_from(ENDS)).map(b"".join)


def pending(data: bytes) -> list[bytes]:
    """The lines of the event that a parser would still be collecting after these bytes, and a line that has no end."""
    *lines, last = re.split(rb"\r\n|\n|\r", data)
    event = []
    for line in lines:
        event = [] if not line else event if line.startswith(b":") else [*event, line]
    return event + [last] * bool(last)


@given(st.lists(LINE, max_size=12).map(b"".join), st.integers(1, 9))
def test_no_bytes_are_lost_and_no_event_is_half(data, size):
    events, passed = Events(), b""
    for start in range(0, len(data), size):
        passed += events.feed(data[start : start + size])
        assert pending(passed) == []
        assert data.startswith(passed)
    if not pending(data):
        assert passed in (data, data[:-1])  # a line feed after a carriage return may still come
    assert passed + events.rest() == data


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("comment", [b": ping", b":", b": a: b", b"\xef\xbb\xbf: ping"])
def test_a_comment_is_passed_on_at_once(end, comment):
    events = Events()
    assert events.feed(comment + end) == comment + end
    assert events.feed(b"data: 1" + end) == b""
    assert events.feed(end + b": ping" + end) == b"data: 1" + end + end + b": ping" + end
    assert events.feed(b": pi") == b""
    assert events.feed(b"ng" + end) == b": ping" + end


@pytest.mark.parametrize("first", ENDS)
@pytest.mark.parametrize("second", ENDS)
def test_an_event_is_passed_on_when_it_is_there(first, second):
    if first + second == b"\r\n":
        return
    event = b"data: 1" + first + second
    events = Events()
    assert events.feed(event) == event
    assert [bytes(events.feed(event[i : i + 1])) for i in range(len(event))][-1:] != [b""]


@pytest.mark.parametrize(
    "end",
    [
        b"data: [DONE]",
        b"data:[DONE]",
        b"data: [DONE] ",
        b"data: [DONE]\n",
        b"data: [DONE]\r",
        b'data: {"id": 1}',
        b'event: x\ndata: {"id": 1}',
        b'data: {"a":\r\ndata: 1}',
        b": bye",
        b"data: anything that ends\n",
    ],
)
def test_an_end_without_its_line_ends_is_whole(end):
    events = Events()
    assert events.feed(b"data: 1\n\n" + end) == b"data: 1\n\n"
    assert events.rest() == end


@pytest.mark.parametrize(
    "end", [b'data: {"id": ', b"data: [DON", b"data", b"event: x", b'data: {"a": 1}\nid: 7', b"\xff"]
)
def test_half_an_event_is_no_end(end):
    events = Events()
    events.feed(b"data: 1\n\n" + end)
    with pytest.raises(ValueError, match="within an event"):
        events.rest()


@pytest.mark.parametrize("passed", [b"data: 1\n\ndata: [DONE]\n\n", b"data: [DONE]\r\n", b"data:[DONE]"])
def test_it_knows_that_the_end_was_told(passed):
    assert Events().is_over(passed)
    assert not Events().is_over(passed + b'data: {"id": 1}\n\n')
    held = Events()
    assert held.feed(b"data: [DONE]") == b""
    assert held.is_over(b"data: 1\n\n")
    assert not held.is_over(b"x")


def test_an_event_that_is_too_large_to_hold_is_passed_on_and_marked():
    events = Events()
    large = b"data: " + b"x" * LARGEST
    assert events.feed(large) == large
    assert events.half
    assert events.feed(b"yz") == b""
    with pytest.raises(ValueError, match="within an event"):
        events.rest()
    assert events.feed(b"yz\n\ndata: 2") == b"yz\n\n"
    assert not events.half
