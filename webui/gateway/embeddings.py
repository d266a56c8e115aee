"""/v1/embeddings, /v1/embeddings/sparse, /v1/rerank: one shape in front of whichever embedding server there is."""

import base64
import contextlib
import json
import sys
import threading
import uuid
from array import array
from dataclasses import replace

from flask import (
    Blueprint,
    Response,
    copy_current_request_context,
    current_app,
    has_app_context,
    has_request_context,
    request,
)

from webui.gateway import relay
from webui.gateway.dialects import Backend
from webui.gateway.errors import Refused

api = Blueprint("gateway_embeddings", __name__)

LIMIT = 32 << 20  # bytes of a request
INPUTS = 2048  # texts a request, as in OpenAI's API
DOCUMENTS = 1000  # texts a rerank, as in Cohere's API
# Which services may do a task, in the order in which they are asked.
TASKS = {"embed": ("embeddings",), "sparse": ("sparse", "embeddings"), "rerank": ("rerank", "embeddings")}


class Embedders:
    """The embedding servers of the inventory, each asked once which dialect it speaks. Threads may share it."""

    def __init__(self, app):
        self.app, self._backends, self._lock = app, {}, threading.Lock()

    def backend(self, task):
        """The Backend that does the task: "embed", "sparse" or "rerank". Raises Refused: 404 none, 502, 503."""
        first, seen = None, []
        for key in TASKS[task]:
            try:
                found = self._of(key)
            except Refused as refused:
                if refused.status != 404:
                    raise
                first = refused
                continue
            if found.can(task):
                return found
            seen.append(found)
        for found in seen:  # another server may stand there by now
            if task in found.current().tasks:
                return found
        raise seen[-1].cannot(task) if seen else first

    def _of(self, key):
        gateway = self.app.extensions["gateway"]
        service = gateway.service(key)
        name = (key, service.url)
        with self._lock:
            found = self._backends.get(name)
            if found is None:
                # The service is looked up for each call: its cap and its silence are the inventory's of now.
                found = Backend(self._caller(key), service.where, carry=_carry)
                self._backends = {n: b for n, b in self._backends.items() if n[0] != key} | {name: found}
            return found

    def _caller(self, key):
        def call(method, path, data=None, silence=None):
            with contextlib.nullcontext() if has_app_context() else self.app.app_context():
                service = self.app.extensions["gateway"].service(key)
                if method == "GET":
                    # Beside the places of the requests proper: what has been answered is not lost for want of one.
                    service = replace(service, key=f"{key}-models", cap=relay.TOTAL)
                    return relay.ask(service, method, path, endpoint="models", silence=silence)
                headers = [("Content-Type", "application/json")]
                return relay.ask(service, method, path, data, endpoint=key, headers=headers, silence=silence)

        return call


def _carry(function):
    """A function for another thread that still sees the request, so that the client's hang-up ends it there too."""
    return copy_current_request_context(function) if has_request_context() else function


def the():
    """This app's Embedders."""
    return current_app.extensions["embedders"]


def json_body(limit):
    """The request's JSON object. Raises Refused 400 (param: the field of a number that JSON has not), 413, 415."""
    if request.mimetype != "application/json":
        raise Refused(415, "Send JSON, with the header Content-Type: application/json.", code="bad_content_type")
    raw = b"".join(relay.Upload(limit))
    try:
        data = json.loads(raw, parse_constant=NoNumber.refuse)
    except (ValueError, RecursionError) as error:
        field, why = NoNumber.where(raw)
        if field:
            raise Refused(400, f"{field}: {why}", code="bad_json", param=field) from None
        why = "it is nested too deep" if isinstance(error, RecursionError) else str(error)[:120]
        raise Refused(400, f"The body is not JSON: {why}", code="bad_json") from None
    if not isinstance(data, dict):
        raise Refused(400, "The body must be a JSON object.", code="bad_json")
    return data


class NoNumber:
    """What stands for a number in a body and is none: NaN, Infinity, or more digits than anything reads."""

    DIGITS = 1000

    def __init__(self, text):
        self.text = f"{text[:20]}{'…' if len(text) > 20 else ''} is no number in JSON"

    @classmethod
    def refuse(cls, text):
        """For json.loads(). Raises ValueError."""
        raise ValueError(cls(text).text)

    @classmethod
    def whole(cls, digits):
        """For json.loads(), which refuses long integers without a word of where they are."""
        return int(digits) if len(digits) < cls.DIGITS else cls(digits)

    @classmethod
    def where(cls, raw):
        """(path, what it is) of the first one in a body, like documents[1].metadata.price; two None without one."""
        try:
            path, found = cls._first(json.loads(raw, parse_constant=cls, parse_int=cls.whole))
        except (ValueError, RecursionError):
            return None, None
        steps = [f"[{step}]" if isinstance(step, int) else f".{step[:80]}" for step in reversed(path)]
        return ("".join(steps).removeprefix("."), found.text) if found else (None, None)

    @classmethod
    def _first(cls, value):
        if isinstance(value, cls):
            return [], value
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for step, item in items:
            path, found = cls._first(item)
            if found:
                return [*path, step], found
        return [], None


def of_type(data, field, kind, default=None):
    """data[field], of that type (bool is no int); null and a missing one are the default. Raises Refused 400."""
    value = data.get(field)
    if value is None:
        return default
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON has one kind of number: 5.0 is 5
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Refused(400, f"{field}: this value has the wrong type.", code="invalid_type", param=field)
    return value


def text_of(value, field, *, empty=False):
    """A text that is one: Unicode that can be sent, and not empty unless it may be. Raises Refused 400."""
    if not isinstance(value, str):
        raise Refused(400, f"{field}: expected a string.", code="invalid_type", param=field)
    if not (value or empty):
        raise Refused(400, f"{field}: a text is empty.", code="invalid_value", param=field)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused(400, f"{field}: half a surrogate pair is no text.", code="invalid_value", param=field) from None
    return value


def inputs(data):
    """OpenAI's `input`: a string, a list of strings, or token ids, one list or several. Raises Refused 400."""
    value = data.get("input")
    if isinstance(value, list) and value and all(_token(item) for item in value):
        value = [value]
    if not isinstance(value, list):
        return [text_of(value, "input")]
    if not 0 < len(value) <= INPUTS:
        raise Refused(400, f"input: from 1 to {INPUTS} texts, not {len(value)}.", code="invalid_value", param="input")
    for item in value:
        if not (isinstance(item, list) and item and all(_token(token) for token in item)):
            text_of(item, "input")
    return value


def _token(value):
    return type(value) is int and 0 <= value < 1 << 31


def wanted(data):
    """check(dialect), which refuses another model than is asked for, listing what is served (404).

    `default` is whatever is served. Raises Refused 400.
    """
    wish = of_type(data, "model", str)

    def check(dialect):
        names = {dialect.model, *dialect.models}
        if wish is None or wish == "default" or wish in names or wish in {name.rsplit("/", 1)[-1] for name in names}:
            return
        raise Refused(
            404,
            f"The model {wish[:80]!r} is not here. There is: {', '.join(sorted(names))} (or: default).",
            code="model_not_found",
            param="model",
        )

    return check


def respond(body, found):
    """The JSON response, with what was cut in its headers."""
    response = Response(json.dumps(body) + "\n", mimetype="application/json")
    for name, positions in (("X-Truncated", found.truncated), ("X-Truncation-Unknown", found.unknown)):
        if positions:
            more = ",..." if len(positions) > 100 else ""
            response.headers[name] = ",".join(map(str, positions[:100])) + more
    return response


def usage(found):
    return {"prompt_tokens": found.tokens or 0, "total_tokens": found.tokens or 0}


def notes(found):
    """What was cut, as members of an answer; nothing where nothing was."""
    told = {"truncated": found.truncated} if found.truncated else {}
    return told | ({"truncation_unknown": found.unknown} if found.unknown else {})


@api.post("/v1/embeddings")
@relay.takes(None)
def embeddings():
    """Turn texts into vectors, as OpenAI's API does."""
    data = json_body(LIMIT)
    texts = inputs(data)
    form = of_type(data, "encoding_format", str, "float")
    if form not in ("float", "base64"):
        raise Refused(400, "encoding_format: float or base64.", code="invalid_value", param="encoding_format")
    dimensions = of_type(data, "dimensions", int)
    if dimensions is not None and not 0 < dimensions <= 65536:
        raise Refused(400, "dimensions: a positive number.", code="invalid_value", param="dimensions")
    truncate = of_type(data, "truncate", bool, False)
    found = the().backend("embed").embed(texts, truncate=truncate, dimensions=dimensions, check=wanted(data))
    shape = as_base64 if form == "base64" else list
    rows = [{"object": "embedding", "index": n, "embedding": shape(v)} for n, v in enumerate(found.vectors)]
    return respond({"object": "list", "data": rows, "model": found.model, "usage": usage(found)} | notes(found), found)


def as_base64(vector):
    """Base64 of little-endian float32, as OpenAI's clients ask for."""
    packed = array("f", vector)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


@api.post("/v1/embeddings/sparse")
@relay.takes(None)
def sparse():
    """Turn texts into sparse vectors, in Qdrant's shape: indices unique and ascending."""
    data = json_body(LIMIT)
    texts = inputs(data)
    for text in texts:
        text_of(text, "input")
    found = the().backend("sparse").sparse(texts, truncate=of_type(data, "truncate", bool, False), check=wanted(data))
    rows = [
        {"object": "sparse_embedding", "index": n, "indices": indices, "values": values}
        for n, (indices, values) in enumerate(found.vectors)
    ]
    return respond({"object": "list", "data": rows, "model": found.model, "usage": usage(found)} | notes(found), found)


@api.post("/v1/rerank")
@api.post("/v2/rerank")  # what Cohere's own client calls
@relay.takes(None)
def rerank():
    """Order texts by a query: Cohere's and Jina's {query, documents} or TEI's {query, texts}, answered in that shape.

    Cohere and Jina cut what is too long, so theirs is cut (and told); TEI's is refused unless `truncate`.
    """
    data = json_body(LIMIT)
    query = text_of(data.get("query"), "query")
    theirs = "texts" in data
    field = "texts" if theirs else "documents"
    if theirs and "documents" in data:
        raise Refused(400, "Either documents (Cohere, Jina) or texts (TEI).", code="invalid_value", param="texts")
    given = of_type(data, field, list, [])
    if not 0 < len(given) <= DOCUMENTS:
        raise Refused(400, f"{field}: from 1 to {DOCUMENTS} texts.", code="invalid_value", param=field)
    texts = [text_of(item.get("text") if isinstance(item, dict) else item, field, empty=True) for item in given]
    limit = of_type(data, "top_n", int, len(texts))
    if limit < 1:
        raise Refused(400, "top_n: at least 1.", code="invalid_value", param="top_n")
    raw, truncate = of_type(data, "raw_scores", bool, False), of_type(data, "truncate", bool, not theirs)
    check = wanted(data)
    found = the().backend("rerank").rerank(query, texts, truncate=truncate, raw_scores=raw, check=check)
    order = sorted(range(len(texts)), key=lambda n: (-found.vectors[n], n))
    if theirs:
        with_text = of_type(data, "return_text", bool, False)
        rows = [{"index": n, "score": found.vectors[n]} | ({"text": texts[n]} if with_text else {}) for n in order]
        return respond(rows[:limit], found)
    with_text = of_type(data, "return_documents", bool, False)
    rows = [
        {"index": n, "relevance_score": found.vectors[n]} | ({"document": {"text": texts[n]}} if with_text else {})
        for n in order[:limit]
    ]
    body = {
        "id": f"rerank-{uuid.uuid4().hex}",
        "model": found.model,
        "results": rows,
        "usage": usage(found),
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    }
    return respond(body | notes(found), found)
