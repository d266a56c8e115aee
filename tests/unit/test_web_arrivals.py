"""A request is the same in whatever pieces it arrives, and what is none is refused as early as it can be known."""

from __future__ import annotations

import socket

import pytest
from gunicorn.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st

from webui.arrivals import HEAD, LINE, SMALL, Connection, Refusal

CONFIG = Config()
CONFIG.set("limit_request_line", LINE)


@pytest.fixture(scope="module")
def ours():
    """A socket that nobody reads from: whoever waits for it would wait for ever."""
    one, other = socket.socketpair()
    one.setblocking(False)
    with one, other:
        yield one


def outcome(sock: socket.socket, data: bytes, sizes: list[int]) -> tuple:
    """What becomes of bytes that come in pieces of these sizes, over and over: (bytes it took, what it is)."""
    connection, at, turn = Connection(sock, ("127.0.0.1", 1), ("127.0.0.1", 2)), 0, 0
    while at < len(data):
        piece = data[at : at + sizes[turn % len(sizes)]]
        at, turn = at + len(piece), turn + 1
        connection.receive(piece)
        try:
            if connection.arrived(CONFIG):
                request, body = connection.request, connection.body
                if body is not None:
                    connection.next()
                rest = len(connection.head) if body is not None else 0
                return at - rest if body is not None else None, request.method, request.uri, body
        except Refusal as refused:
            return None, refused.status, refused.code
    return None, "waits"


HEADS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\nGET /x?y HTTP/1.0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 12\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nA b\r\n\r\n",
        b"\x16\x03\x01",
        b"",
    ]
)
BODIES = st.sampled_from(
    [
        b"",
        b"hello, world",
        b'{"a": 1}    GET /next HTTP/1.1\r\n\r\n',
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nTrailer: x\r\n\r\nGET /next HTTP/1.1\r\n\r\n",
        b"5\r\nhel",
        b"zz\r\n",
        b"5\r\nhello!!\r\n",
        b"0\r\n\r\n",
        b"FFFFFFFFFFFFFFFFFF\r\n",
    ]
)


@settings(deadline=None)
@given(HEADS, BODIES | st.binary(max_size=40), st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_pieces_make_no_difference(ours, head, body, sizes):
    whole = outcome(ours, head + body, [1 << 20])
    if not head:  # it may be refused before a piece is there that would have made it something else
        assert outcome(ours, body, sizes)[1] in (whole[1], 400, "waits")
    else:
        assert outcome(ours, head + body, sizes)[1:] == whole[1:]


@pytest.mark.parametrize("size", [0, 1, SMALL, SMALL + 1])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_small_body_is_there_and_a_long_one_is_left_to_its_reader(ours, size, chunked):
    body, head = b"x" * size, b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size
    if chunked:
        head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        body = (b"%x\r\n%b\r\n" % (size, body) if size else b"") + b"0\r\n\r\n"
    found = outcome(ours, head + body + b"GET", [4096])
    assert found[1:] == ("POST", "/", b"x" * size if size <= SMALL else None)
    if size <= SMALL:
        assert found[0] == len(head + body)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"x" * HEAD, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (HEAD // 6), 431),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1;" + b"x" * 10_000, "waits"),
    ],
)
def test_what_does_not_end_is_bounded(ours, data, status):
    assert outcome(ours, data + b"x" * 10, [1000])[1] == status


def test_the_path_is_known_as_far_as_it_is_there(ours):
    for line in (b"GET /v1/models?x HTTP/1.1", b"GET http://localhost/v1/models HTTP/1.1", b"get /v1/models HTTP/1.1"):
        connection = Connection(ours, ("127.0.0.1", 1), ("127.0.0.1", 2))
        connection.receive(line + b"\r\nno header\r\n\r\n")
        with pytest.raises(Refusal):
            connection.arrived(CONFIG)
        assert connection.path == "/v1/models"


def test_a_line_end_too_many_is_no_request(ours):
    connection = Connection(ours, ("127.0.0.1", 1), ("127.0.0.1", 2))
    connection.receive(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}\r\n")
    assert connection.arrived(CONFIG)
    connection.next()
    assert connection.idle
