"""Chat with what is serving, to try it: the answer streams in. A conversation lives in this process, for a while."""

import threading
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field

from flask import Blueprint, current_app, make_response, redirect, render_template, request
from jinja2_fragments.flask import render_block
from markupsafe import escape

from webui.core import fragments, overview, streams, words
from webui.core.problems import Problem
from webui.gateway import chat as gateway
from webui.gateway.errors import Refused
from webui.gateway.relay import HungUp
from webui.pages import cluster, roads

pages = Blueprint("chat", __name__)
KEPT = 100  # conversations
TURNS = 200  # of a conversation
QUESTION = 32_000  # characters
NEW = {"url": "/chat", "see": "New conversation"}
HELLO = [{"role": "user", "content": "Hello"}]


@dataclass
class Turn:
    """A question and its answer. state: waiting|answering|done|stopped|cut|refused; message: what is wrong, plainly.

    first, seconds: until the first token and to the end; tokens: of the answer, as the model told.
    """

    number: int
    question: str
    state: str = "waiting"
    text: str = ""
    thought: str = ""
    message: str = ""
    link: str = ""
    model: str = ""
    reason: str = ""
    first: float | None = None
    seconds: float = 0.0
    tokens: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def claim(self):
        """Take it from waiting to answering; False when that is done already."""
        with self.lock:
            mine = self.state == "waiting"
            if mine:
                self.state = "answering"
            return mine

    def end(self, state, message="", link=""):
        """Its last state; whoever ended it first is right."""
        with self.lock:
            if self.state in ("waiting", "answering"):
                self.state, self.message, self.link = state, message, link

    @property
    def ended(self):
        return self.state not in ("waiting", "answering")

    @property
    def details(self):
        """[words] about an answer: who gave it, how fast."""
        rate = self.tokens / (self.seconds - self.first) if self.tokens and self.first is not None else 0
        told = [
            self.model,
            f"first word after {self.first:.1f} s" if self.first is not None else "",
            words.plural(self.tokens, "token") if self.tokens else "",
            f"{rate:.0f} tok/s" if self.tokens and self.tokens > 4 and self.seconds - self.first > 0.1 else "",
            "it ended at the token limit" if self.reason == "length" else "",
        ]
        return [word for word in told if word]


@dataclass
class Conversation:
    """Turns, oldest first."""

    id: str
    turns: list = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def ask(self, question):
        """The Turn of a new question. Raises Problem 409 when there are TURNS."""
        with self.lock:
            if len(self.turns) >= TURNS:
                raise Problem(409, "This conversation is full. Begin a new one.", **NEW)
            self.turns.append(Turn(len(self.turns) + 1, question))
            return self.turns[-1]

    def again(self, turn):
        """A fresh Turn in the place of the last one, if that has ended. Raises Problem 409 for an earlier one."""
        with self.lock:
            if turn is not self.turns[-1]:
                raise Problem(409, "Only the last question can be asked again.")
            if turn.ended:
                self.turns[-1] = Turn(turn.number, turn.question)
            return self.turns[-1]

    def messages(self, turn):
        """OpenAI's messages up to a turn's question. Those without an answer are left out: they come in pairs."""
        found = []
        for before in self.turns[: turn.number - 1]:
            if before.text:
                found.append({"role": "user", "content": before.question})
                found.append({"role": "assistant", "content": before.text})
        return [*found, {"role": "user", "content": turn.question}]


class Conversations:
    """The last KEPT conversations of this process. Threads may share it."""

    def __init__(self):
        self._kept, self._lock = OrderedDict(), threading.Lock()

    def get(self, key):
        """The conversation of that id, or None."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def add(self):
        """A new one; the one that was used the longest ago goes."""
        made = Conversation(uuid.uuid4().hex)
        with self._lock:
            self._kept[made.id] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made


def register(app):
    """Give the app its Conversations."""
    app.extensions["conversations"] = Conversations()


def _kept():
    return current_app.extensions["conversations"]


def _find(key, number=None):
    """A conversation, or a turn of it. Raises Problem 404."""
    found = _kept().get(key)
    if found and number is not None and 0 < number <= len(found.turns):
        return found, found.turns[number - 1]
    if found is None or number is not None:
        raise Problem(404, "This conversation is not kept any more. Begin a new one.", **NEW)
    return found


@pages.get("/chat")
def index():
    """A conversation that has not begun."""
    return _page(None)


@pages.get("/chat/<key>")
def conversation(key):
    """One that has."""
    return _page(_find(key))


def _page(found):
    return render_template("chat.html", **_context(found))


def _context(found):
    asked = found.messages(found.turns[-1]) if found and found.turns else HELLO
    return {
        "conversation": found,
        "serving": overview.serving(cluster.now()),
        "turns": found.turns if found else [],
        "curl": roads.curl("v1/chat/completions", {"model": "default", "stream": True, "messages": asked}, stream=True),
        "limit": QUESTION,
    }


@pages.post("/chat")
def ask():
    """A question, to a new conversation or to the one named: with htmx its turn, which fetches the answer itself."""
    question = (request.form.get("question") or "").replace("\r\n", "\n").strip()
    if not question:
        raise Problem(422, "Write something first.", errors=[{"field": "question", "message": "Expected a text."}])
    if len(question) > QUESTION:
        raise Problem(422, f"That is longer than {QUESTION:,} characters. The API takes more.")
    found = _find(request.form["conversation"]) if request.form.get("conversation") else _kept().add()
    return _shown(found, found.ask(question), fresh=True)


@pages.post("/chat/<key>/<int:number>/again")
def again(key, number):
    """Ask the last question once more."""
    found, turn = _find(key, number)
    return _shown(found, found.again(turn))


@pages.post("/chat/<key>/<int:number>/stop")
def stop(key, number):
    """End an answer. The page takes the stream away with it, and the model stops at that."""
    found, turn = _find(key, number)
    turn.end("stopped")
    return _shown(found, turn)


def _shown(found, turn, fresh=False):
    """With htmx the turn, which fetches its answer itself; without, the page, once the answer is there."""
    if fragments.asked():
        response = make_response(render_block("chat.html", "turn", turn=turn, fresh=fresh, **_context(found)))
        if fresh:
            response.headers["HX-Push-Url"] = f"/chat/{found.id}"
        return response
    if turn.claim():
        for _ in _answer(found, turn):
            pass
    return redirect(f"/chat/{found.id}#turn-{turn.number}", 303)


@pages.get("/chat/<key>/<int:number>/stream")
def stream(key, number):
    """The answer's pieces (`thought`, `text`), then the whole of it (`end`), then `close`."""
    found, turn = _find(key, number)
    over = streams.watcher()

    def events():
        yield from _answer(found, turn) if turn.claim() else _wait(turn, over)
        yield streams.event("end", render_block("chat.html", "answer", turn=turn, conversation=found))
        yield streams.event("close", "")

    return streams.respond(events())


def _wait(turn, over):
    """Nothing, until another stream of this answer has ended: a page that was opened twice, or again."""
    while not turn.ended and not over():
        time.sleep(0.1)
    yield from ()


def _answer(found, turn):
    """Have a turn answered that was claimed; yields the events of it."""
    began = time.monotonic()
    try:
        turn.model, pieces = gateway.talk(found.messages(turn))
        for kind, value in pieces:
            turn.seconds = time.monotonic() - began
            if kind in ("text", "thought"):
                turn.first = turn.seconds if turn.first is None else turn.first
                setattr(turn, kind, getattr(turn, kind) + value)
                yield streams.event(kind, str(escape(value)))
            elif kind == "usage":
                turn.tokens = value.get("completion_tokens")
            elif kind == "end":
                turn.reason = value
                turn.end("done")
            else:
                turn.end("cut", value)
    except Refused as refused:
        job = refused.more.get("job_id")  # told as a link here, and as an address in the message
        turn.end("refused", words.sentence(refused.message.split(": http")[0]), f"/jobs/{job}" if job else "")
    except HungUp:
        pass
    finally:
        # Also where the page was closed: the model has stopped by then.
        turn.end("cut", "The page was closed, or lost its connection, while it was answering.")
