"""The one field of a JSON body is found as any parser would, whatever the pieces, and nothing else is made of it."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webui.gateway.body import Broken, Finder

JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def find(body: bytes, size: int = 1 << 20) -> Finder | None:
    """A Finder for `model` fed in pieces of that size; None when the body was not enough."""
    finder = Finder("model")
    for start in range(0, len(body), size):
        if finder.feed(body[start : start + size]):
            return finder
    return None


@given(
    others=st.dictionaries(st.text(), JSON, max_size=5),
    name=st.text(max_size=30),
    size=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    plain=st.booleans(),
    first=st.booleans(),
)
def test_it_finds_what_a_parser_finds(others, name, size, indent, plain, first):
    others.pop("model", None)
    value = {"model": name, **others} if first else {**others, "model": name}
    body = json.dumps(value, indent=indent, ensure_ascii=plain).encode("utf-8", "surrogatepass")
    finder = find(body, size)
    assert finder.value() == name
    assert bytes(finder.buffer).startswith(body[: finder.end])
    replaced = body[: finder.start] + b'"other"' + body[finder.end :]
    assert json.loads(replaced.decode("utf-8", "surrogatepass")) == {**value, "model": "other"}


@given(JSON, st.integers(1, 9))
def test_it_finds_nothing_where_there_is_nothing(value, size):
    body = json.dumps({"messages": value, "models": {"model": "inner"}, "x": [{"model": 1}]}).encode()
    finder = find(body, size)
    assert finder.over
    assert finder.start is None


@given(st.binary(max_size=60), st.integers(1, 9))
def test_bytes_of_any_kind_end_in_an_answer(body, size):
    with contextlib.suppress(Broken):
        finder = find(body, size)
        if finder and finder.start is not None:
            finder.value()


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_byte_order_mark_is_passed_over_once(size):
    finder = find(b'\xef\xbb\xbf {"model": "x"}', size)
    assert (finder.value(), finder.marked, bytes(finder.buffer[:2])) == ("x", True, b" {")
    assert not find(b'{"model": "x"}', size).marked
    for twice in (b"\xef\xbb\xbf\xef\xbb\xbf{}", b" \xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00"):
        with pytest.raises(Broken):
            find(twice, size)


@pytest.mark.parametrize("body", [b"[]", b'"model"', b"null", b"{1:2}", b'{"a" 1}', b'{"a":1 "b":2}', b"\xef\xbb{}",
                                  b"{,}", b'{"a":}', b'{"model":"\\ud8"}', b"{\x00", b"x", b'{"a":1,}'])  # fmt: skip
def test_what_is_no_object_is_refused(body):
    with pytest.raises(Broken):
        find(body).value()


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"mod', b'{"model"', b'{"model":', b'{"model": "x', b'{"a": [1, {"b"', b'{"a":12']
)
def test_what_is_cut_short_is_not_enough(body):
    assert find(body) is None


def test_an_escaped_key_is_the_same_key():
    assert find(rb'{"\u006dodel": "caf\u00e9"}').value() == "café"


@pytest.mark.parametrize("value", ["1", "null", "[]", '{"model": "x"}', '"' + "x" * 70_000 + '"'])
def test_a_value_that_is_no_name(value):
    assert find(f'{{"model": {value}}}'.encode()).value() is None


LARGE = {
    "string": b'{"a":"' + b"x" * (8 << 20),
    "number": b'{"a":' + b"1" * (8 << 20),
    "escapes": b'{"a":"' + b"\\n" * (4 << 20),
    "pairs": b'{"a":[' + b"[]," * (2 << 20),
    "strings": b'{"a":[' + b'"\\"",' * (1 << 20),
}


@pytest.mark.parametrize("body", LARGE.values(), ids=LARGE)
def test_no_byte_is_looked_at_twice(body):
    finder, size, at = Finder("model"), 1 << 16, 0
    for start in range(0, len(body), size):
        assert not finder.feed(body[start : start + size])
        assert finder._at >= at
        assert len(finder.buffer) - finder._at <= 1
        at = finder._at


def test_nesting_has_an_end():
    with pytest.raises(Broken, match="nested"):
        find(b'{"a":' + b"[" * 1000)
