"""The chat page, through a real gunicorn to a real upstream: what streams in, what stays, every way an answer ends."""

from __future__ import annotations

import http.client
import json
import re
import shlex
import subprocess
import threading
from urllib.parse import urlencode

import pytest

from tests.gateway import Gateway, Upstream
from tests.support import wait_for
from webui.core.problems import Problem
from webui.pages.chat import TURNS, Conversation, Conversations, Turn

HTMX = {"HX-Request": "true", "HX-Current-URL": "http://127.0.0.1/chat"}


def piece(text=None, reason=None, **delta) -> bytes:
    """One event of a chat's stream."""
    delta |= {"content": text} if text is not None else {}
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}\n\n'
DONE = b"data: [DONE]\n\n"


class Model(Upstream):
    """Does what the first word of the last message says."""

    def do_(self, sock, seen):
        word = json.loads(seen.body)["messages"][-1]["content"].split()[0]
        getattr(self, f"say_{word}")(sock, seen)

    def say_hello(self, sock, seen):
        told = (piece(role="assistant", content=""), piece("Hi"), piece(" <b>you</b>\n\nthere"), piece("\r\n!"))
        self._events(sock, *told, piece(reason="stop"), USAGE, DONE)

    def say_think(self, sock, seen):
        told = (piece(reasoning_content="Hm, "), piece(reasoning="so."), piece("Done."), piece(reason="length"))
        self._events(sock, *told, DONE)

    def say_returns(self, sock, seen):
        told = (piece("Hi"), b": ping\n", piece(" you"), piece(reason="stop"))
        self._events(sock, *(event.replace(b"\n", b"\r") for event in told), b"data: [DONE]")

    def say_wait(self, sock, seen):
        self._events(sock, piece("One"), end=False)
        self._until_gone(sock, seen)

    def say_break(self, sock, seen):
        self._events(sock, piece("Half an ans"), end=False)

    def say_nothing(self, sock, seen):
        self._events(sock, piece(reason="stop"), DONE)

    def say_full(self, sock, seen):
        self._json(sock, 400, {"error": {"message": "This model's maximum context length is 5 tokens.", "code": 400}})

    def say_page(self, sock, seen):
        self.do_web_page(sock, seen)


@pytest.fixture(scope="module")
def upstream():
    made = Model()
    yield made
    made.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, upstream):
    made = Gateway(tmp_path_factory.mktemp("chat"), upstream.port)
    yield made
    made.stop()


def ask(gateway, method, path, form=None, **headers):
    """(status, headers, text) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    body = urlencode(form) if form is not None else None
    kind = {"Content-Type": "application/x-www-form-urlencoded"} if form is not None else {}
    connection.request(method, path, body, {"Accept": "text/html"} | kind | headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, text


def question(gateway, text, conversation=None):
    """(conversation's id, the turn's fragment) of a question that htmx sends."""
    form = {"question": text} | ({"conversation": conversation} if conversation else {})
    status, headers, fragment = ask(gateway, "POST", "/chat", form, **HTMX)
    assert status == 200, fragment
    return headers["HX-Push-Url"].rsplit("/", 1)[1], fragment


def asked_last(upstream):
    """The newest chat that reached the upstream, which is also asked how it is."""
    return [seen for seen in upstream.seen if seen.method == "POST"][-1]


def events(text):
    """[(event, data)] of a stream."""
    found = []
    for block in text.split("\n\n"):
        name = re.search(r"^event: (.*)$", block, re.M)
        if name:
            found.append((name[1], "\n".join(re.findall(r"^data: ?(.*)$", block, re.M))))
    return found


def answered(gateway, text, conversation=None):
    """(conversation's id, the events of its answer)."""
    key, fragment = question(gateway, text, conversation)
    assert 'id="with" hx-swap-oob="true"' in fragment  # what serves may have changed since the page came
    path = re.search(r'sse-connect="([^"]+)"', fragment)[1]
    status, headers, body = ask(gateway, "GET", path)
    assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/event-stream")
    return key, events(body)


def test_an_answer_streams_in_and_stays(gateway, upstream):
    key, told = answered(gateway, "hello\nthere")
    assert [data for name, data in told if name == "text"] == ["Hi", " &lt;b&gt;you&lt;/b&gt;\n\nthere", "\n!"]
    assert [name for name, _ in told][-2:] == ["end", "close"]
    end = told[-2][1]
    assert "Hi &lt;b&gt;you&lt;/b&gt;\n\nthere" in end
    assert "3 tokens" in end
    assert "sse-" not in end
    sent = json.loads(asked_last(upstream).body)
    assert sent["messages"] == [{"role": "user", "content": "hello\nthere"}]
    assert sent["model"] == upstream.models[0]
    page = ask(gateway, "GET", f"/chat/{key}")[2]
    assert "Hi &lt;b&gt;you&lt;/b&gt;" in page
    assert "sse-connect" not in page


def test_lines_may_end_in_any_way(gateway):
    _, told = answered(gateway, "returns")
    assert [data for name, data in told if name == "text"] == ["Hi", " you"]
    assert "broken off" not in told[-2][1]


def test_the_next_question_takes_along_what_was_said(gateway, upstream):
    key, _ = answered(gateway, "hello")
    answered(gateway, "full of words", key)
    answered(gateway, "think", key)
    roles = [(message["role"], message["content"]) for message in json.loads(asked_last(upstream).body)["messages"]]
    # The refused one is left out: chat templates want questions and answers in turn.
    assert roles == [("user", "hello"), ("assistant", "Hi <b>you</b>\n\nthere\r\n!"), ("user", "think")]


def test_thinking_is_told_apart(gateway):
    _, told = answered(gateway, "think")
    assert [pair for pair in told if pair[0] in ("thought", "text")] == [
        ("thought", "Hm, "), ("thought", "so."), ("text", "Done.")]  # fmt: skip
    assert "What it thought" in told[-2][1]
    assert "it ended at the token limit" in told[-2][1]


@pytest.mark.parametrize(
    ("word", "state", "said"),
    [
        ("full", "refused", "This model&#39;s maximum context length is 5 tokens."),
        ("page", "refused", "vLLM on spark1 did not answer with an event stream."),
        ("break", "cut", "vLLM on spark1 broke off in the middle of its answer."),
        ("nothing", "done", "It answered without a word."),
    ],
)
def test_an_answer_that_fails_says_why(gateway, word, state, said):
    key, told = answered(gateway, word)
    assert f'class="body {state}"' in told[-2][1]
    assert said in told[-2][1]
    assert ("Ask again" in told[-2][1]) == (state != "done")
    assert said in ask(gateway, "GET", f"/chat/{key}")[2]


def open_stream(gateway, path):
    """A connection whose answer has begun to come."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    while not answer.readline().startswith(b"event: text"):
        pass
    return connection, answer


def test_closing_the_page_ends_the_answer_and_it_can_be_asked_again(gateway, upstream):
    key, fragment = question(gateway, "wait")
    connection, answer = open_stream(gateway, f"/chat/{key}/1/stream")
    asked = asked_last(upstream)
    answer.close()
    connection.close()
    assert asked.gone.wait(5)
    wait_for(lambda: "broken off" in ask(gateway, "GET", f"/chat/{key}")[2], 5, "the turn's end")
    wait_for(lambda: gateway.metric("in_flight") == 0, 5, "the place")
    status, _, fragment = ask(gateway, "POST", f"/chat/{key}/1/again", {}, **HTMX)
    assert status == 200
    assert f'sse-connect="/chat/{key}/1/stream"' in fragment


def test_stop_is_the_end_of_it(gateway, upstream):
    key, _ = question(gateway, "wait")
    connection, answer = open_stream(gateway, f"/chat/{key}/1/stream")
    status, _, fragment = ask(gateway, "POST", f"/chat/{key}/1/stop", {}, **HTMX)
    assert (status, 'class="body stopped"' in fragment, "sse-connect" in fragment) == (200, True, False)
    answer.close()
    connection.close()  # what the page does when the fragment replaces the stream's
    assert asked_last(upstream).gone.wait(5)
    wait_for(lambda: gateway.metric("in_flight") == 0, 5, "the place")
    assert 'class="body stopped"' in ask(gateway, "GET", f"/chat/{key}")[2]


def test_a_second_page_of_the_same_answer_asks_nobody_twice(gateway, upstream):
    key, _ = question(gateway, "wait")
    connection, answer = open_stream(gateway, f"/chat/{key}/1/stream")
    before, told = len(upstream.asked("")), []
    other = threading.Thread(target=lambda: told.extend(events(ask(gateway, "GET", f"/chat/{key}/1/stream")[2])))
    other.start()
    answer.close()
    connection.close()
    other.join(20)
    assert [name for name, _ in told] == ["end", "close"]
    assert "One" in told[0][1]
    chats = [seen for seen in upstream.asked("")[before:] if seen.target.startswith("/v1/chat")]
    assert chats == []


def test_without_a_script_the_page_comes_with_the_answer(gateway):
    status, headers, _ = ask(gateway, "POST", "/chat", {"question": "hello"})
    assert status == 303
    page = ask(gateway, "GET", headers["Location"].split("#")[0])[2]
    assert "Hi &lt;b&gt;you&lt;/b&gt;" in page


def test_bad_questions_are_refused_by_name(gateway):
    for text, status in ((" \n", 422), ("", 422), ("x" * 33_000, 422), ("x" * 70_000, 413)):
        assert ask(gateway, "POST", "/chat", {"question": text}, **HTMX)[0] == status
    assert ask(gateway, "POST", "/chat", {}, **HTMX)[0] == 422
    assert ask(gateway, "POST", "/chat", {"question": "hello", "conversation": "gone"}, **HTMX)[0] == 404
    for path in ("/chat/nope", "/chat/nope/1/stream", "/chat/..%2f..%2fetc/1/stream"):
        assert ask(gateway, "GET", path)[0] == 404
    key, _ = question(gateway, "hello")
    for number in ("0", "2", "-1"):
        assert ask(gateway, "GET", f"/chat/{key}/{number}/stream")[0] == 404
    refused = ask(gateway, "POST", "/chat", {"question": "hello"}, Origin="http://evil.example")
    assert refused[0] == 403


def test_the_line_for_a_terminal_does_the_same(gateway, upstream):
    key, _ = answered(gateway, 'hello it\'s <me> & "you"')
    page = ask(gateway, "GET", f"/chat/{key}")[2]
    line = re.search(r'<pre id="chat-line"[^>]*>(.*?)</pre>', page, re.S)[1]
    for entity, char in (("&#39;", "'"), ("&#34;", '"'), ("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        line = line.replace(entity, char)
    assert shlex.split(line)[0] == "curl"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.endswith("data: [DONE]\n\n")
    assert json.loads(asked_last(upstream).body)["messages"][-1]["content"] == 'hello it\'s <me> & "you"'


def test_only_the_newest_conversations_are_kept():
    kept = Conversations()
    first, second = kept.add(), kept.add()
    for _ in range(98):
        kept.add()
    kept.get(first.id)
    kept.add()
    assert kept.get(first.id) is first
    assert kept.get(second.id) is None


def test_whoever_ends_an_answer_first_is_right():
    turn = Turn(1, "hello")
    assert turn.claim()
    assert not turn.claim()
    turn.end("stopped")
    turn.end("cut", "too late")
    assert (turn.state, turn.message) == ("stopped", "")
    assert Conversation("x", [turn]).messages(turn) == [{"role": "user", "content": "hello"}]


def test_a_conversation_is_full_at_some_point_and_only_its_end_is_asked_again():
    found = Conversation("x")
    turns = [found.ask(f"question {n}") for n in range(TURNS)]
    assert [turn.number for turn in turns] == list(range(1, TURNS + 1))
    with pytest.raises(Problem, match="This conversation is full"):
        found.ask("one more")
    with pytest.raises(Problem, match="Only the last question"):
        found.again(turns[0])
    assert found.again(turns[-1]) is turns[-1]  # it has not ended
    turns[-1].end("cut")
    assert (found.again(turns[-1]).number, found.turns[-1].state) == (TURNS, "waiting")
