"""What may be wished of a collection and of a search in it, checked; and the search itself."""

import re

from flask import current_app

from webui.core import filters
from webui.core.problems import fields, typed, wrong_field
from webui.gateway import chunks, fusion, ingest
from webui.gateway.dialects import LARGEST
from webui.gateway.search import bm25

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
DOCUMENTS = 1000  # of a JSON request
SIZES, OVERLAPS = (100, 20_000), (0, 10_000)  # characters of a chunk, and of what it shares with the one before
DISTANCES = ("cosine", "dot", "euclid")
SPARSE = ("auto", "model", "bm25", "none")
MODES = ("hybrid", "dense", "sparse")
FUSIONS = ("rrf", "dbsf")
OPTIONS = ("dimensions", "distance", "sparse", "language")
FIELDS = ("query", "vector", "mode", "limit", "fusion", "k", "weights", "candidates", "filter", "rerank", "snippet")


def engine():
    """This app's search.Engine."""
    return current_app.extensions["search"]


def checked_name(name):
    """A collection's name, if it is one. Raises Problem 422."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise wrong_field("name", "A collection's name is 1 to 64 of A-Z a-z 0-9 _ -.")
    return name


def options(data):
    """{OPTIONS} of what is wished of a collection; dimensions None: the model's own. Raises Problem 422."""
    language = typed(data, "language", str, "english", message="A language like english or german.")
    try:
        bm25(language)
    except ValueError:
        raise wrong_field("language", "BM25 knows no such language. It takes english, german, french, …") from None
    return {
        "dimensions": _number(data, "dimensions", 1, 65536, None) if data.get("dimensions") is not None else None,
        "distance": _choice(data, "distance", DISTANCES, "cosine"),
        "sparse": _choice(data, "sparse", SPARSE, "auto"),
        "language": language,
    }


def chunk_sizes(wish):
    """(size, overlap) in characters of what was wished. Raises Problem 422."""
    fields(wish, ("size", "overlap"))
    size = _number(wish, "size", *SIZES, chunks.SIZE)
    overlap = _number(wish, "overlap", *OVERLAPS, min(chunks.OVERLAP, size // 8))
    if overlap >= size / 2:
        raise wrong_field("overlap", "Less than half of the size.")
    return size, overlap


def progress_of(note):
    """An ingest's note with its percent and its address."""
    percent = 100.0 if note["state"] == "done" else round(100 * note["offset"] / max(1, note["bytes"]), 1)
    return note | {"percent": percent, "url": f"/api/collections/{note['collection']}/ingests/{note['id']}"}


def search(name, data):
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
    finder = engine()
    settings = finder.settings(name)
    mode = _choice(data, "mode", MODES, "hybrid" if settings["sparse"] else "dense")
    if mode != "dense" and not settings["sparse"]:
        raise wrong_field("mode", f"{name} has no sparse vectors: dense is what it can.")
    if vector is not None:
        _check_vector(vector, settings["dimensions"])

    told = finder.search(
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
        raise wrong_field("weights", "One of them is more than 0.")
    return found


def _check_vector(vector, size):
    text = f"A list of {size} numbers, as the collection's are."
    if not isinstance(vector, list) or len(vector) != size:
        raise wrong_field("vector", text)
    if not all(type(value) in (int, float) and abs(value) < LARGEST for value in vector):
        raise wrong_field("vector", text)


def _choice(data, field, choices, default):
    value = typed(data, field, str, default, message=f"One of {', '.join(choices)}.")
    if value not in choices:
        raise wrong_field(field, f"One of {', '.join(choices)}.")
    return value


def _number(data, field, low, high, default, kind=int):
    text = f"A number from {low:,} to {high:,}."
    kinds = (int, float) if kind is float else int
    return typed(data, field, kinds, default, check=lambda v: low <= v <= high, message=text)
