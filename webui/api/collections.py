"""/api/collections: documents in, search over them by meaning, by words, or by both at once."""

from flask import Blueprint, Response, current_app, json, jsonify, request

from webui.api import jobs
from webui.core import collections as wanted
from webui.core.collections import engine
from webui.core.problems import Problem, fields, respond, typed, wrong_field
from webui.gateway import embeddings, ingest, relay, store
from webui.gateway.errors import Refused

api = Blueprint("api_collections", __name__)

DOCUMENTS_LIMIT = 32 << 20  # bytes of JSON
LINES_LIMIT = 2 << 30  # bytes of JSON lines, which go to the disk
SEARCH_LIMIT = 1 << 20
LINES = ("application/x-ndjson", "application/jsonl", "application/ndjson")
TRIES = 5  # of two callers who make and delete the same one


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


def json_body(limit):
    """The request's JSON object. Raises Problem 400 where it names the field that is no JSON, else Refused."""
    try:
        return embeddings.json_body(limit)
    except Refused as refused:
        if not refused.param:
            raise
        raise Problem(400, refused.message, errors=[{"field": refused.param, "message": refused.message}]) from None


# --- collections


@api.get("/api/collections")
def collections():
    """List the collections, and say whether the store is the embedded one or a server."""
    shelf = engine().store()
    listed = [_shown(item) for item in shelf.collections()]
    return jsonify(store="embedded" if isinstance(shelf, store.EdgeStore) else "server", collections=listed)


@api.get("/api/collections/<name>")
def collection(name):
    """Tell a collection's settings and how many chunks it has."""
    return jsonify(_shown(engine().store().collection(wanted.checked_name(name))))


def _shown(item):
    kept = ("name", "points", "dimensions", "distance", "sparse", "language", "model", "identity", "foreign")
    return {key: item[key] for key in kept if key in item}


@api.post("/api/collections")
def create():
    """Make a collection: 201, or 409 if there is one of that name."""
    data = fields(json_body(SEARCH_LIMIT), ("name", *wanted.OPTIONS), ("name",))
    name = wanted.checked_name(data.pop("name"))
    return jsonify(_shown(engine().create(name, **wanted.options(data)))), 201


@api.put("/api/collections/<name>")
def put(name):
    """Make a collection unless it is there: 201 when made, 200 if it is there with these settings, 409 with others."""
    name = wanted.checked_name(name)
    data = fields(json_body(SEARCH_LIMIT), wanted.OPTIONS)
    wish = wanted.options(data)
    for _ in range(TRIES):
        try:
            there = engine().store().collection(name)
        except store.Missing:
            try:
                return jsonify(_shown(engine().create(name, **wish))), 201
            except store.Exists:  # another caller was quicker
                continue
        differs = [key for key in data if wish[key] not in (None, "auto") and wish[key] != _as_asked(there, key)]
        if differs:
            raise Problem(409, f"There is a collection {name} already, with another {' and '.join(differs)}.")
        return jsonify(_shown(there))
    raise Problem(409, f"The collection {name} is made and deleted by others just now.")


def _as_asked(there, key):
    return (there.get(key) or "none") if key == "sparse" else there.get(key)


@api.delete("/api/collections/<name>")
def delete(name):
    """Delete a collection and all it holds, if ?confirm= repeats its name."""
    name = wanted.checked_name(name)
    found = engine().store().collection(name)
    if request.args.get("confirm") != name:
        raise Problem(
            422,
            f"This deletes {name} and its {found['points']:,} chunks, for good. Ask again with ?confirm={name}.",
            errors=[{"field": "confirm", "message": "Repeat the collection's name."}],
        )
    engine().delete(name)
    return jsonify(deleted=name, points=found["points"])


# --- documents


@api.put("/api/collections/<name>/documents")
@relay.takes(None)
def put_documents(name):
    """Put documents in.

    As JSON it is done when answered. As JSON lines (application/x-ndjson), a document each: 202 with the address of its
    progress. size and overlap are characters; those in a JSON body's `chunk` come before those in the address.
    """
    name = wanted.checked_name(name)
    bounds = {"size": wanted.SIZES, "overlap": wanted.OVERLAPS}
    given = {field: jobs.number(field, None, *bound) for field, bound in bounds.items()}
    asked = {field: value for field, value in given.items() if value is not None}
    if request.mimetype in LINES:
        return _put_lines(name, *wanted.chunk_sizes(asked))
    data = fields(json_body(DOCUMENTS_LIMIT), ("documents", "chunk"), ("documents",))
    size, overlap = wanted.chunk_sizes(typed(data, "chunk", dict, asked, message="An object with size and overlap."))
    rows = typed(data, "documents", list, message="A list of documents.")
    if not 0 < len(rows) <= wanted.DOCUMENTS:
        raise wrong_field("documents", f"From 1 to {wanted.DOCUMENTS:,}; more go as JSON lines (application/x-ndjson).")
    documents, seen = [], set()
    for number, item in enumerate(rows):
        try:
            documents.append(ingest.checked(item))
        except ingest.Bad as bad:
            raise wrong_field(f"documents[{number}]" + (f".{bad.field}" if bad.field else ""), str(bad)) from None
        if documents[-1]["id"] in seen and item.get("id"):
            raise wrong_field(f"documents[{number}].id", f"The id {item['id']} is there twice.")
        seen.add(documents[-1]["id"])
    return jsonify(engine().writer.put(engine().settings(name), documents, size, overlap))


def _put_lines(name, size, overlap):
    settings = engine().settings(name)
    try:
        note = engine().ingests.add(settings, relay.Upload(LINES_LIMIT), size, overlap)
    except OSError as error:
        raise Problem(507, f"The lines cannot be kept in the state folder: {error.strerror}.") from error
    response = jsonify(wanted.progress_of(note))
    response.status_code = 202
    response.headers["Location"] = wanted.progress_of(note)["url"]
    return response


@api.get("/api/collections/<name>/ingests")
def ingests(name):
    """List a collection's large ingests, newest first."""
    return jsonify(ingests=[wanted.progress_of(note) for note in engine().ingests.all(wanted.checked_name(name))])


@api.get("/api/collections/<name>/ingests/<key>")
def progress(name, key):
    """Tell how far a large ingest is."""
    return jsonify(wanted.progress_of(_note(name, key)))


@api.delete("/api/collections/<name>/ingests/<key>")
def cancel(name, key):
    """End a large ingest; what it has written stays."""
    return jsonify(wanted.progress_of(engine().ingests.cancel(_note(name, key))))


@api.post("/api/collections/<name>/ingests/<key>")
def go_on(name, key):
    """Have a large ingest go on that failed and is resumable; 409 for another."""
    note = engine().ingests.go_on(_note(name, key))
    if note["state"] not in ("waiting", "running"):
        raise Problem(409, "It cannot go on: its lines are not kept. Send them again.")
    return jsonify(wanted.progress_of(note))


def _note(name, key):
    note = engine().ingests.get(wanted.checked_name(name), key)
    if note is None:
        raise Problem(404, f"There is no such ingest into {name}.")
    return note


@api.delete("/api/collections/<name>/documents/<document>")
def delete_document(name, document):
    """Take a document out."""
    name = wanted.checked_name(name)
    if not ingest.DOCUMENT.fullmatch(document):
        raise wrong_field("id", "A document's id is 1 to 200 of A-Z a-z 0-9 _ . : @ + -.")
    removed = engine().writer.remove(engine().settings(name), document)
    if not removed:
        raise Problem(404, f"There is no document {document} in {name}.")
    return jsonify(document=document, removed=removed)


# --- search


@api.post("/api/collections/<name>/search")
@relay.takes(SEARCH_LIMIT)
def search(name):
    """Search a collection by meaning, by words, or by both at once: its hits, best first."""
    return Response(json.dumps(wanted.search(name, json_body(SEARCH_LIMIT))) + "\n", mimetype="application/json")
