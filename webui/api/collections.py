"""/api/collections: documents in, search over them by meaning, by words, or by both at once."""

import re

from flask import Blueprint, Response, current_app, json, jsonify, request

from webui.api import filters, jobs
from webui.api.problems import Problem, fields, respond, typed
from webui.gateway import chunks, embeddings, fusion, ingest, relay, store
from webui.gateway.dialects import LARGEST
from webui.gateway.errors import Refused
from webui.gateway.search import bm25

api = Blueprint("api_collections", __name__)

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
DOCUMENTS_LIMIT = 32 << 20  # bytes of JSON
LINES_LIMIT = 2 << 30  # bytes of JSON lines, which go to the disk
SEARCH_LIMIT = 1 << 20
DOCUMENTS = 1000  # of a JSON request
SIZES, OVERLAPS = (100, 20_000), (0, 10_000)  # characters of a chunk, and of what it shares with the one before
DISTANCES = ("cosine", "dot", "euclid")
SPARSE = ("auto", "model", "bm25", "none")
MODES = ("hybrid", "dense", "sparse")
FUSIONS = ("rrf", "dbsf")
LINES = ("application/x-ndjson", "application/jsonl", "application/ndjson")


def the():
    """This app's search.Engine."""
    return current_app.extensions["search"]


@api.after_request
def count(response):
    """For /metrics: these requests are relayed to nobody, so nobody else counts them."""
    requests = current_app.extensions["gateway"].metrics.requests
    requests.labels(request.endpoint.removeprefix("api_"), "", str(response.status_code)).inc()
    return response


# --- errors


@api.errorhandler(store.Missing)
def missing(error):
    return _respond(404, str(error))


@api.errorhandler(store.Replaced)
@api.errorhandler(store.Exists)
def conflict(error):
    return _respond(409, str(error))


@api.errorhandler(store.Wrong)
def wrong(error):
    return _respond(422, str(error))


@api.errorhandler(store.Unavailable)
def unavailable(error):
    return _respond(503, str(error), headers={"Retry-After": "5"})


def _respond(status, text, **more):
    return respond(Problem(status, text, **more))


def _field(name, text):
    return Problem(422, f"{name}: {text}" if name else text, errors=[{"field": name, "message": text}])


def json_body(limit):
    """The request's JSON object. Raises Problem 400 where it names the field that is no JSON, else Refused."""
    try:
        return embeddings.json_body(limit)
    except Refused as refused:
        if not refused.param:
            raise
        raise Problem(400, refused.message, errors=[{"field": refused.param, "message": refused.message}]) from None


def checked_name(name):
    """A collection's name, if it is one. Raises Problem 422."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise _field("name", "A collection's name is 1 to 64 of A-Z a-z 0-9 _ -.")
    return name


def _choice(data, field, choices, default):
    value = typed(data, field, str, default, message=f"One of {', '.join(choices)}.")
    if value not in choices:
        raise _field(field, f"One of {', '.join(choices)}.")
    return value


def _number(data, field, low, high, default, kind=int):
    text = f"A number from {low:,} to {high:,}."
    kinds = (int, float) if kind is float else int
    return typed(data, field, kinds, default, check=lambda v: low <= v <= high, message=text)


# --- collections


@api.get("/api/collections")
def collections():
    """List the collections, and say whether the store is the embedded one or a server."""
    engine = the()
    listed = [_shown(item) for item in engine.store().collections()]
    return jsonify(store="embedded" if isinstance(engine.store(), store.EdgeStore) else "server", collections=listed)


@api.get("/api/collections/<name>")
def collection(name):
    """Tell a collection's settings and how many chunks it has."""
    return jsonify(_shown(the().store().collection(checked_name(name))))


def _shown(item):
    kept = ("name", "points", "dimensions", "distance", "sparse", "language", "model", "identity", "foreign")
    return {key: item[key] for key in kept if key in item}


@api.post("/api/collections")
def create():
    """Make a collection: 201, or 409 if there is one of that name."""
    data = fields(json_body(SEARCH_LIMIT), ("name", *OPTIONS), ("name",))
    name = checked_name(data.pop("name"))
    return jsonify(_shown(the().create(name, **options(data)))), 201


@api.put("/api/collections/<name>")
def put(name):
    """Make a collection unless it is there: 201 when made, 200 if it is there with these settings, 409 with others."""
    name = checked_name(name)
    data = fields(json_body(SEARCH_LIMIT), OPTIONS)
    wish = options(data)
    for _ in range(TRIES):
        try:
            there = the().store().collection(name)
        except store.Missing:
            try:
                return jsonify(_shown(the().create(name, **wish))), 201
            except store.Exists:  # another caller was quicker
                continue
        differs = [key for key in data if wish[key] not in (None, "auto") and wish[key] != _as_asked(there, key)]
        if differs:
            raise Problem(409, f"There is a collection {name} already, with another {' and '.join(differs)}.")
        return jsonify(_shown(there))
    raise Problem(409, f"The collection {name} is made and deleted by others just now.")


OPTIONS = ("dimensions", "distance", "sparse", "language")
TRIES = 5


def _as_asked(there, key):
    return (there.get(key) or "none") if key == "sparse" else there.get(key)


def options(data):
    """{OPTIONS} of what is wished of a collection; dimensions None: the model's own. Raises Problem 422."""
    language = typed(data, "language", str, "english", message="A language like english or german.")
    try:
        bm25(language)
    except ValueError:
        raise _field("language", "BM25 knows no such language. It takes english, german, french, …") from None
    return {
        "dimensions": _number(data, "dimensions", 1, 65536, None) if data.get("dimensions") is not None else None,
        "distance": _choice(data, "distance", DISTANCES, "cosine"),
        "sparse": _choice(data, "sparse", SPARSE, "auto"),
        "language": language,
    }


@api.delete("/api/collections/<name>")
def delete(name):
    """Delete a collection and all it holds, if ?confirm= repeats its name."""
    name = checked_name(name)
    found = the().store().collection(name)
    if request.args.get("confirm") != name:
        raise Problem(
            422,
            f"This deletes {name} and its {found['points']:,} chunks, for good. Ask again with ?confirm={name}.",
            errors=[{"field": "confirm", "message": "Repeat the collection's name."}],
        )
    the().delete(name)
    return jsonify(deleted=name, points=found["points"])


# --- documents


@api.put("/api/collections/<name>/documents")
@relay.takes(None)
def put_documents(name):
    """Put documents in.

    As JSON it is done when answered. As JSON lines (application/x-ndjson), a document each: 202 with the address of its
    progress. size and overlap are characters; those in a JSON body's `chunk` come before those in the address.
    """
    name = checked_name(name)
    asked = {"size": jobs.number("size", None, *SIZES), "overlap": jobs.number("overlap", None, *OVERLAPS)}
    asked = {key: value for key, value in asked.items() if value is not None}
    if request.mimetype in LINES:
        return _put_lines(name, *chunk_sizes(asked))
    data = fields(json_body(DOCUMENTS_LIMIT), ("documents", "chunk"), ("documents",))
    size, overlap = chunk_sizes(typed(data, "chunk", dict, asked, message="An object with size and overlap."))
    given = typed(data, "documents", list, message="A list of documents.")
    if not 0 < len(given) <= DOCUMENTS:
        raise _field("documents", f"From 1 to {DOCUMENTS:,}; more go as JSON lines (application/x-ndjson).")
    documents, seen = [], set()
    for number, item in enumerate(given):
        try:
            documents.append(ingest.checked(item))
        except ingest.Bad as bad:
            raise _field(f"documents[{number}]" + (f".{bad.field}" if bad.field else ""), str(bad)) from None
        if documents[-1]["id"] in seen and item.get("id"):
            raise _field(f"documents[{number}].id", f"The id {item['id']} is there twice.")
        seen.add(documents[-1]["id"])
    return jsonify(the().writer.put(the().settings(name), documents, size, overlap))


def _put_lines(name, size, overlap):
    settings = the().settings(name)
    try:
        note = the().ingests.add(settings, relay.Upload(LINES_LIMIT), size, overlap)
    except OSError as error:
        raise Problem(507, f"The lines cannot be kept in the state folder: {error.strerror}.") from error
    response = jsonify(progress_of(note))
    response.status_code = 202
    response.headers["Location"] = progress_of(note)["url"]
    return response


def chunk_sizes(wish):
    """(size, overlap) in characters of what was wished. Raises Problem 422."""
    fields(wish, ("size", "overlap"))
    size = _number(wish, "size", *SIZES, chunks.SIZE)
    overlap = _number(wish, "overlap", *OVERLAPS, min(chunks.OVERLAP, size // 8))
    if overlap >= size / 2:
        raise _field("overlap", "Less than half of the size.")
    return size, overlap


@api.get("/api/collections/<name>/ingests")
def ingests(name):
    """List a collection's large ingests, newest first."""
    return jsonify(ingests=[progress_of(note) for note in the().ingests.all(checked_name(name))])


@api.get("/api/collections/<name>/ingests/<key>")
def progress(name, key):
    """Tell how far a large ingest is."""
    return jsonify(progress_of(_note(name, key)))


@api.delete("/api/collections/<name>/ingests/<key>")
def cancel(name, key):
    """End a large ingest; what it has written stays."""
    return jsonify(progress_of(the().ingests.cancel(_note(name, key))))


@api.post("/api/collections/<name>/ingests/<key>")
def go_on(name, key):
    """Have a large ingest go on that failed and is resumable; 409 for another."""
    note = the().ingests.go_on(_note(name, key))
    if note["state"] not in ("waiting", "running"):
        raise Problem(409, "It cannot go on: its lines are not kept. Send them again.")
    return jsonify(progress_of(note))


def _note(name, key):
    note = the().ingests.get(checked_name(name), key)
    if note is None:
        raise Problem(404, f"There is no such ingest into {name}.")
    return note


def progress_of(note):
    """An ingest's note with its percent and its address."""
    percent = 100.0 if note["state"] == "done" else round(100 * note["offset"] / max(1, note["bytes"]), 1)
    return note | {"percent": percent, "url": f"/api/collections/{note['collection']}/ingests/{note['id']}"}


@api.delete("/api/collections/<name>/documents/<document>")
def delete_document(name, document):
    """Take a document out."""
    name = checked_name(name)
    if not ingest.DOCUMENT.fullmatch(document):
        raise _field("id", "A document's id is 1 to 200 of A-Z a-z 0-9 _ . : @ + -.")
    removed = the().writer.remove(the().settings(name), document)
    if not removed:
        raise Problem(404, f"There is no document {document} in {name}.")
    return jsonify(document=document, removed=removed)


# --- search

FIELDS = ("query", "vector", "mode", "limit", "fusion", "k", "weights", "candidates", "filter", "rerank", "snippet")


@api.post("/api/collections/<name>/search")
@relay.takes(SEARCH_LIMIT)
def search(name):
    """Search a collection by meaning, by words, or by both at once: its hits, best first."""
    return Response(json.dumps(found(name, json_body(SEARCH_LIMIT))) + "\n", mimetype="application/json")


def found(name, data):
    """The answer of a search, as a dict. Raises Problem 422, store's exceptions, Refused."""
    name = checked_name(name)
    fields(data, FIELDS, ("query",))
    query = typed(data, "query", str, check=_is_query, message="A text.")
    limit = _number(data, "limit", 1, 100, 10)
    candidates = max(limit, _number(data, "candidates", 1, 500, max(50, 2 * limit)))
    method = _choice(data, "fusion", FUSIONS, "rrf")
    k = _number(data, "k", 1, 10_000, fusion.K)
    weights = _weights(data)
    length = _number(data, "snippet", 0, 2000, 300)
    rerank = typed(data, "rerank", bool, False, message="true or false.")
    condition = filters.checked(data.get("filter"))
    vector = data.get("vector")
    engine = the()
    settings = engine.settings(name)
    mode = _choice(data, "mode", MODES, "hybrid" if settings["sparse"] else "dense")
    if mode != "dense" and not settings["sparse"]:
        raise _field("mode", f"{name} has no sparse vectors: dense is what it can.")
    if vector is not None:
        _check_vector(vector, settings["dimensions"])

    told = engine.search(
        settings,
        query,
        mode=mode,
        vector=vector,
        limit=limit,
        candidates=candidates,
        condition=condition,
        method=method,
        k=k,
        weights=weights,
        rerank=rerank,
    )
    hits = [_hit(hit, query, length) for hit in told.pop("hits")]
    return {"collection": name, "mode": mode, "reranked": rerank, "hits": hits} | told


def _hit(hit, query, length):
    payload = hit.pop("payload")
    hit |= {key: payload.get(key) for key in ("document", "chunk", "text", "start", "end", "metadata")}
    if length:
        hit["snippet"] = chunks.snippet(hit["text"] or "", query, length)
    return hit


def _is_query(text):
    return text.strip() and len(text) <= 20_000 and ingest.sound(text)


def _weights(data):
    given = typed(data, "weights", dict, {}, message="An object like {dense: 1, sparse: 0.5}.")
    fields(given, ("dense", "sparse"))
    found = {kind: float(_number(given, kind, 0, 1000, 1.0, float)) for kind in ("dense", "sparse")}
    if not any(found.values()):
        raise _field("weights", "One of them is more than 0.")
    return found


def _check_vector(vector, size):
    text = f"A list of {size} numbers, as the collection's are."
    if not isinstance(vector, list) or len(vector) != size:
        raise _field("vector", text)
    if not all(type(value) in (int, float) and abs(value) < LARGEST for value in vector):
        raise _field("vector", text)
