"""/api/collections: documents in, search over them by meaning, by words, or by both at once."""

import re
from datetime import datetime

from flask import Blueprint, Response, current_app, json, jsonify, request

from webui.api import jobs
from webui.api.problems import Problem, fields, respond, typed
from webui.gateway import chunks, fusion, ingest, relay, store
from webui.gateway.embeddings import json_body
from webui.gateway.errors import Refused
from webui.gateway.search import bm25

api = Blueprint("api_collections", __name__)

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
KEY = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,4}")
DATE = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:\d\d)?)?")
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
PROBE = "How many numbers has a vector?"


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
    return _respond(404, f"There is no collection {error}.")


@api.errorhandler(store.Exists)
def exists(error):
    return _respond(409, f"There is a collection {error} already.")


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
    kept = ("name", "points", "dimensions", "distance", "sparse", "language", "model", "foreign")
    return {key: item[key] for key in kept if key in item}


@api.post("/api/collections")
def create():
    """Make a collection: 201, or 409 if there is one of that name."""
    data = fields(json_body(SEARCH_LIMIT), ("name", *OPTIONS), ("name",))
    name = checked_name(data.pop("name"))
    return jsonify(created(name, data)), 201


@api.put("/api/collections/<name>")
def put(name):
    """Make a collection unless it is there: 201 when made, 200 if it is there with these settings, 409 with others."""
    name = checked_name(name)
    data = fields(json_body(SEARCH_LIMIT), OPTIONS)
    try:
        there = the().store().collection(name)
    except store.Missing:
        return jsonify(created(name, data)), 201
    differs = [
        key for key in data if not (key == "sparse" and data[key] == "auto") and data[key] != _as_asked(there, key)
    ]
    if differs:
        raise Problem(409, f"There is a collection {name} already, with another {' and '.join(differs)}.")
    return jsonify(_shown(there))


OPTIONS = ("dimensions", "distance", "sparse", "language")


def _as_asked(there, key):
    return (there.get(key) or "none") if key == "sparse" else there.get(key)


def created(name, data):
    """Create a collection with OPTIONS as wished; returns it. Raises Problem 422, store's exceptions, Refused."""
    distance = _choice(data, "distance", DISTANCES, "cosine")
    sparse = _choice(data, "sparse", SPARSE, "auto")
    language = typed(data, "language", str, "english", message="A language like english or german.")
    try:
        bm25(language)
    except ValueError:
        raise _field("language", "BM25 knows no such language. It takes english, german, french, …") from None
    size = _number(data, "dimensions", 1, 65536, None) if data.get("dimensions") is not None else None
    engine = the()
    backend = engine.app.extensions["embedders"].backend("embed")
    native = len(backend.embed([PROBE]).vectors[0])
    if size and size != native:
        backend.embed([PROBE], dimensions=size)  # or it is refused, with the reason
    if sparse in ("auto", "model"):
        try:
            engine.app.extensions["embedders"].backend("sparse")
            sparse = "model"
        except Refused as refused:
            if sparse == "model" or refused.status != 404:
                raise
            sparse = "bm25"
    settings = {
        "dimensions": size or native,
        "distance": distance,
        "sparse": None if sparse == "none" else sparse,
        "language": language,
        "model": backend.dialect().model,
        "shortened": bool(size and size != native),
    }
    engine.store().create(name, settings)
    return _shown({"name": name, "points": 0} | settings)


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
    the().store().delete(name)
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
    return jsonify(the().writer.put(name, documents, size, overlap))


def _put_lines(name, size, overlap):
    the().settings(name)
    try:
        note = the().ingests.add(name, relay.Upload(LINES_LIMIT), size, overlap)
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
    removed = the().writer.remove(name, document)
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
    query = typed(data, "query", str, check=lambda v: v.strip() and len(v) <= 20_000 and _sound(v), message="A text.")
    limit = _number(data, "limit", 1, 100, 10)
    candidates = max(limit, _number(data, "candidates", 1, 500, max(50, 2 * limit)))
    method = _choice(data, "fusion", FUSIONS, "rrf")
    k = _number(data, "k", 1, 10_000, fusion.K)
    weights = _weights(data)
    length = _number(data, "snippet", 0, 2000, 300)
    rerank = typed(data, "rerank", bool, False, message="true or false.")
    condition = checked_filter(data.get("filter"))
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


def _sound(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    if not all(type(value) in (int, float) and abs(value) < 1e30 for value in vector):
        raise _field("vector", text)


def checked_filter(given, depth=0):
    """A filter in Qdrant's JSON, its keys leading into the metadata; None without one. Raises Problem 422.

    {must, should, must_not: [{key, match: {value | any | except}}, {key, range: {gt, gte, lt, lte}},
    {is_empty: {key}}, or a filter]}; the key `document` is the document's id.
    """
    if given is None and not depth:
        return None
    if not isinstance(given, dict) or not given or depth > 4:
        raise _field("filter", "An object with must, should or must_not.")
    found = {}
    for kind, items in given.items():
        if kind not in ("must", "should", "must_not") or not isinstance(items, list) or not 0 < len(items) <= 50:
            raise _field("filter", "must, should and must_not, each a list of 1 to 50 conditions.")
        found[kind] = [_condition(item, depth) for item in items]
    return found


def _condition(item, depth):
    if not isinstance(item, dict):
        raise _field("filter", "A condition is an object with key, and match or range.")
    if set(item) == {"is_empty"} and isinstance(item["is_empty"], dict) and set(item["is_empty"]) == {"key"}:
        return {"is_empty": {"key": _key(item["is_empty"]["key"])}}
    if "key" not in item:
        return checked_filter(item, depth + 1)
    key = _key(item["key"])
    if set(item) == {"key", "match"}:
        match = _match(item["match"])
        if "except" in match:
            # Said so, it does not depend on which type of values an index of the field happens to be for.
            return {"must_not": [{"key": key, "match": {"any": match["except"]}}, {"is_empty": {"key": key}}]}
        return {"key": key, "match": match}
    if set(item) == {"key", "range"}:
        return {"key": key, "range": _range(item["range"])}
    raise _field("filter", f"{item['key']}: one of match and range.")


def _key(key):
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise _field("filter", "A key is a name in the metadata, or several joined by dots.")
    return key if key == "document" or key.startswith("metadata.") else f"metadata.{key}"


def _match(match):
    kind, value = next(iter(match.items())) if isinstance(match, dict) and len(match) == 1 else (None, None)
    one = isinstance(value, str | int) and ingest._plain(value) and (not isinstance(value, str) or _sound(value))
    if kind == "value" and one:
        return {kind: value}
    if kind in ("any", "except") and isinstance(value, list) and 0 < len(value) <= 1000:
        strings = all(isinstance(item, str) and _sound(item) for item in value)
        numbers = all(type(item) is int and ingest._plain(item) for item in value)
        if strings or numbers:
            return {kind: value}
    raise _field("filter", "match: {value: a string, an integer, true or false}, or {any: [...]} or {except: [...]}.")


def _range(given):
    if not isinstance(given, dict) or not given or set(given) - {"gt", "gte", "lt", "lte"}:
        raise _field("filter", "range: one or more of gt, gte, lt, lte.")
    numbers = all(type(value) in (int, float) and abs(value) < 1e300 for value in given.values())
    dates = all(isinstance(value, str) and DATE.fullmatch(value) and _is_time(value) for value in given.values())
    if not (numbers or dates):
        raise _field("filter", "range: numbers, or times like 2026-11-22T10:00:00Z.")
    return dict(given)


def _is_time(value):
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True
