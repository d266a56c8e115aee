"""OpenAI's API for what vLLM serves: models, chat, completions, responses."""

import contextlib
import itertools
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from flask import Blueprint, current_app, jsonify, request

from webui.gateway import services
from webui.gateway.body import Broken, Finder
from webui.gateway.errors import Refused
from webui.gateway.events import LINE_END
from webui.gateway.relay import HungUp, ask, relay, stream, takes, the

api = Blueprint("openai", __name__)

ALIAS = "default"
JSON_MEGABYTES = 64
NAMES_FRESH = 2.0  # seconds for which vLLM's list of models holds
STALE = 10.0  # seconds more, while a new list is being asked for
OTHERS_FRESH = 2.0  # the same for the services beside it, whose model may be exchanged too
LIST_SILENCE = 5.0
LISTED = ("embeddings", "sparse", "rerank", "transcription", "speech")  # services whose models /v1/models tells
MODEL_NAME = 512  # characters
ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


@api.post("/v1/chat/completions", endpoint="chat")
@takes(None)
def chat_completions():
    """Chat, streamed or not, with tools, images and whatever else the model takes."""
    return _relay("chat", "/v1/chat/completions")


@api.post("/v1/completions", endpoint="completions")
@takes(None)
def completions():
    """Complete a text."""
    return _relay("completions", "/v1/completions")


@api.post("/v1/responses", endpoint="responses")
@takes(None)
def responses():
    """Respond, by the Responses API, where this vLLM offers it; else its 404."""
    return _relay("responses", "/v1/responses")


@api.get("/v1/responses/<name>", endpoint="response")
def response(name):
    """Tell a response that vLLM has stored."""
    return _relay_stored(name, "")


@api.post("/v1/responses/<name>/cancel", endpoint="response_cancel")
def response_cancel(name):
    """Cancel a response that vLLM makes in the background."""
    return _relay_stored(name, "/cancel")


@api.get("/v1/models")
def models():
    """List what is served now: vLLM's models and the alias `default`, and those of the services beside it."""
    return jsonify(object="list", data=cards())


@api.get("/v1/models/<path:name>")
def model(name):
    """Tell of a model that is served."""
    listed = cards()
    for card in listed:
        if card["id"] == name:
            return jsonify(card)
    raise unknown(name, [card["id"] for card in listed])


def talk(messages):
    """Ask what is serving, for a page: (the model's name, an iterator of (kind, value)). Closing it hangs up.

    messages: OpenAI's. Kinds: "thought" and "text" (str), "usage" (OpenAI's dict), and as the last one "end" (why the
    model ended: "stop", "length") or "cut" (what broke it off, in plain words). Raises Refused before the first.
    """
    service = the().service("chat")
    model = next(iter(model_names(service)), "")
    asked = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    return model, _told(stream(service, "/v1/chat/completions", asked, endpoint="chat", model=model))


def _told(answer):
    reason = None
    with contextlib.closing(answer):
        for event in _events(answer):
            if "error" in event:
                yield "cut", str((event["error"] or {}).get("message") or "The model broke off.")
                return
            for choice in event.get("choices") or ():
                delta = choice.get("delta") or {}
                # vLLM renamed the field; both are out there.
                if thought := delta.get("reasoning_content") or delta.get("reasoning"):
                    yield "thought", thought
                if text := delta.get("content"):
                    yield "text", text
                reason = choice.get("finish_reason") or reason
            if event.get("usage"):
                yield "usage", event["usage"]
    yield ("end", reason) if reason else ("cut", "The answer broke off.")


def _events(pieces):
    """The JSON objects of an event stream's data lines."""
    rest = b""
    for piece in itertools.chain(pieces, [b"\n"]):
        *lines, rest = LINE_END.split(rest + piece)
        for line in lines:
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                with contextlib.suppress(ValueError, RecursionError):
                    if isinstance(event := json.loads(line[5:]), dict):
                        yield event


def unknown(name, names):
    """OpenAI's 404 for a model that is not there, with those that are."""
    there = ", ".join(f"`{known}`" for known in names) or "no model now"
    return Refused(
        404,
        f"The model `{name[:200]}` does not exist. This server has {there}.",
        code="model_not_found",
        param="model",
    )


def _relay(endpoint, path):
    gateway = the()
    service = gateway.service("chat")
    if request.mimetype != "application/json" and not request.mimetype.endswith("+json"):
        raise Refused(415, "Send JSON, with the header Content-Type: application/json.", code="unsupported_media_type")
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise Refused(415, "Send the body uncompressed.", code="unsupported_content_encoding")
    variables = gateway.cluster.inventory().hosts[service.host].variables
    limit = services.number(variables, "gateway_json_megabytes", JSON_MEGABYTES, int) << 20

    def prepare(upload, exchange):
        return _with_model(upload, exchange, service)

    return relay(service, path, endpoint=endpoint, limit=limit, prepare=prepare)


def _relay_stored(name, action):
    if not ID.fullmatch(name):
        raise Refused(404, "There is no response with this id.", code="not_found", param="id")
    return relay(the().service("chat"), f"/v1/responses/{name}{action}", endpoint="responses", limit=4096, again=True)


def _with_model(upload, exchange, service):
    """(pieces of the body, its length, the model): read up to the model, which is checked; the alias is replaced."""
    finder, broken = Finder("model"), "The body is not a JSON object"
    try:
        for data in upload:
            exchange.hold(len(data))
            if finder.feed(data):
                break
        else:
            raise Broken("it ends too early" if upload.sent else "it is empty")
        asked = finder.value() if finder.start is not None else ""
    except Broken as error:
        raise Refused(400, f"{broken}: {error}.", code="invalid_json") from error
    if asked is None or len(asked) > MODEL_NAME:
        raise Refused(400, "The field model must be a model's name.", code="invalid_type", param="model")
    names = model_names(service)
    instead = None
    if asked == ALIAS and ALIAS not in names:
        if not names:
            raise Refused(503, f"{service.where} serves no model now.", code="service_unavailable")
        asked, instead = names[0], json.dumps(names[0]).encode()
    elif asked and asked not in names:
        raise unknown(asked, [*names, ALIAS] if names else [])
    length = upload.length
    if finder.marked and length is not None:
        length -= 3
    if instead is not None and length is not None:
        length += len(instead) - (finder.end - finder.start)
    return _pieces(upload, exchange, finder, instead), length, asked


def _pieces(upload, exchange, finder, instead):
    buffer = memoryview(finder.buffer)
    if instead is None:
        yield buffer
    else:
        yield buffer[: finder.start]
        yield instead
        yield buffer[finder.end :]
    buffer.release()
    finder.buffer = b""
    exchange.release()
    yield from upload


# --- which models there are -------------------------------------------------------------------------------------------


class Lists:
    """The lists of models that the services told, each for a while. One request at a time asks for one."""

    def __init__(self):
        self._lists, self._locks, self._lock = {}, {}, threading.Lock()

    def of(self, service, fresh, get):
        """The service's cards [dict], at most `fresh` seconds old. get() asks; what it raises is kept as long."""
        with self._lock:
            lock = self._locks.setdefault(service.url, threading.Lock())
        known = self._lists.get(service.url)
        if not self._holds(known, fresh):
            # While one asks, the others go by a list that was good a moment ago.
            wait = not self._holds(known, fresh + STALE) or isinstance(known[1], Exception)
            if lock.acquire(blocking=wait):
                try:
                    known = self._lists.get(service.url)
                    if not self._holds(known, fresh):
                        known = self._lists[service.url] = self._ask(get)
                finally:
                    lock.release()
        if isinstance(known[1], Exception):
            raise Refused(known[1].status, known[1].message, code=known[1].code, retry_after=known[1].retry_after)
        return known[1]

    @staticmethod
    def _holds(known, seconds):
        return known is not None and time.monotonic() - known[0] <= seconds

    @staticmethod
    def _ask(get):
        try:
            return time.monotonic(), get()
        except Refused as refused:
            return time.monotonic(), refused


def _lists():
    return current_app.extensions["gateway"].__dict__.setdefault("lists", Lists())


def model_names(service):
    """The names that vLLM answers to, the one that it serves first. Raises Refused where it does not tell."""
    return [card["id"] for card in _cards_of(service, NAMES_FRESH)]


def _cards_of(service, fresh):
    return _lists().of(service, fresh, lambda: _ask_models(service))


def _ask_models(service):
    """The service's model cards: OpenAI's list, or the one model that TEI tells in /info. Raises Refused."""
    # Beside the places of the requests proper: a full queue must not hide what is there.
    asked = replace(service, key=f"{service.key}-models", cap=16, silence=LIST_SILENCE)
    found = []
    answer = ask(asked, "GET", "/v1/models", endpoint="models", limit=4 << 20)
    try:
        if answer.status == 200:
            found = [card for card in answer.json()["data"] if isinstance(card["id"], str) and card["id"]]
        elif service.group != "vllm":
            info = ask(asked, "GET", "/info", endpoint="models", limit=1 << 20)
            if info.status == 200:
                found = [{"id": str(info.json()["model_id"])}]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refused(502, f"{service.where} tells no list of models.", code="bad_gateway") from None
    if not found and service.group == "vllm":
        raise Refused(502, f"{service.where} tells no list of models.", code="bad_gateway")
    the().metrics.knows(card["id"] for card in found)
    return [{"object": "model", "created": 0, "owned_by": service.group, **card} for card in found]


def cards():
    """The model cards of every service that answers; what does not is left out."""
    gateway, app = the(), current_app._get_current_object()
    inventory = gateway.cluster.inventory()
    found = [services.find(inventory, key) for key in ("chat", *LISTED)]

    def of(service):
        with app.app_context():
            try:
                return _cards_of(service, NAMES_FRESH if service.key == "chat" else OTHERS_FRESH)
            except (Refused, HungUp):
                return []

    there = {service.url: service for service in found if service}
    if not there:
        return []
    with ThreadPoolExecutor(len(there)) as pool:
        lists = list(pool.map(of, there.values()))
    told = {}
    for service, listed in zip(there.values(), lists, strict=True):
        for card in listed:
            told.setdefault(card["id"], card)
        if service.key == "chat" and listed:
            told.setdefault(ALIAS, {**listed[0], "id": ALIAS, "root": listed[0]["id"], "owned_by": "spark-control"})
    return list(told.values())
