"""Search over collections: the store and the embedding servers joined, for whoever puts in or searches.

A collection keeps the names of the models that its vectors are of, and the vectors of one known text, the canary. No
vector is written or compared before the server has named the same model and given the canary the same vector: there are
servers that name no model, and names under which the weights change.
"""

import functools
import math
import struct
import threading
import time
import uuid
from base64 import b64decode
from pathlib import Path

from webui.gateway import fusion, ingest, services, store
from webui.gateway.embeddings import as_base64
from webui.gateway.errors import Refused

CANARY = "How many numbers has a vector?"
ALIKE = 0.98  # cosine: the same model gives more at any precision from 8 bits on, another of its size next to nothing
KINDS = ("dense", "sparse")


class Engine:
    """The store and the embedding servers, for whoever puts in or searches. Threads may share it."""

    def __init__(self, app):
        self.app, self._lock, self._store, self._at = app, threading.Lock(), None, None
        self.writer = ingest.Writer(self)
        self.ingests = ingest.Ingests(self.writer, Path(app.config["STATE_DIR"]) / "ingests")

    def store(self):
        """The store: of the inventory's Qdrant, or the embedded one.

        Raises Unavailable while nobody can tell which: documents must not go into the wrong one.
        """
        gateway = self.app.extensions["gateway"]
        inventory = gateway.cluster.inventory()
        found = services.find(inventory, "qdrant")
        if inventory.error and not inventory.hosts:
            raise store.Unavailable(inventory.error)
        if found is None and inventory.groups.get("qdrant"):
            raise store.Unavailable(f"{inventory.groups['qdrant'][0]}, where Qdrant is, has no address.")
        at = found or "embedded"
        old = None
        with self._lock:
            if self._at != at:
                old, self._at = self._store, at
                if found:
                    where = found.where[:1].upper() + found.where[1:]
                    gate = functools.partial(gateway.place, found)
                    self._store = store.ServerStore(found.url, where, found.silence, gate=gate)
                else:
                    self._store = store.EdgeStore(Path(self.app.config["STATE_DIR"]) / "search")
            now = self._store
        if old:
            old.close()
        return now

    def settings(self, name):
        """A collection's settings. Raises Missing, and Wrong for one that something else made."""
        found = self.store().collection(name)
        if found.get("foreign"):
            raise store.Wrong(f"The collection {name} was made by something else: it has no vector named dense.")
        return found

    def still(self, name, identity):
        """The settings of a collection that is to be the one of that identity. Raises Missing, Replaced."""
        found = self.store().collection(name)
        if found.get("identity") != identity:
            raise store.Replaced(name)
        return found

    def create(self, name, *, dimensions, distance, sparse, language):
        """Make a collection for the models that are served; returns its settings. Raises Exists, Refused, Unavailable.

        dimensions: None is the model's own; sparse: model, bm25, none, or auto: the model's where there is one.
        """
        embedders = self.app.extensions["embedders"]
        backend = embedders.backend("embed")
        found = backend.embed([CANARY], truncate=True)
        native = len(found.vectors[0])
        if dimensions and dimensions != native:
            found = backend.embed([CANARY], truncate=True, dimensions=dimensions)  # or it is refused, with the reason
        settings = {
            "dimensions": dimensions or native,
            "distance": distance,
            "sparse": None if sparse == "none" else sparse,
            "language": language,
            "model": found.model,
            "shortened": bool(dimensions and dimensions != native),
            "identity": uuid.uuid4().hex,
            "canary": as_base64(found.vectors[0]),
        }
        if sparse in ("auto", "model"):
            try:
                told = embedders.backend("sparse").sparse([CANARY], truncate=True)
                settings |= {"sparse": "model", "sparse_model": told.model, "sparse_canary": list(told.vectors[0])}
            except Refused as refused:
                if sparse == "model" or refused.status not in (400, 404):
                    raise
                settings["sparse"] = "bm25"
        self.store().create(name, settings)
        return settings | {"name": name, "points": 0}

    def delete(self, name):
        """Delete a collection, all it holds, and what is on its way into it. Raises Missing, Unavailable."""
        identity = self.store().collection(name).get("identity")
        self.store().delete(name)
        self.ingests.end(name, identity)

    def vectors(self, settings, texts, *, query=False, kinds=KINDS):
        """(dense or None, sparse or None, positions of texts that were cut) of texts for that collection.

        Raises Refused: 409 where another model is served than the collection's vectors are of.
        """
        dense, sparse, cut = None, None, set()
        if "dense" in kinds:
            found = self._dense(settings, texts)
            dense, cut = found.vectors, cut | set(found.truncated) | set(found.unknown)
        if "sparse" in kinds and settings["sparse"] == "bm25":
            sparse = [words(settings["language"], text, query) for text in texts]
        elif "sparse" in kinds and settings["sparse"] == "model":
            found = self._sparse(settings, texts)
            sparse, cut = found.vectors, cut | set(found.truncated) | set(found.unknown)
        return dense, sparse, sorted(cut)

    def _dense(self, settings, texts):
        backend = self.app.extensions["embedders"].backend("embed")
        size, canary = settings["dimensions"], settings.get("canary")
        try:
            found = backend.embed(
                texts,
                truncate=True,
                dimensions=size if settings.get("shortened") else None,
                check=_of_model(settings.get("model")),
                canary=CANARY if canary else None,
            )
        except Refused as refused:
            if refused.param == "dimensions":
                raise Refused(409, refused.message, code="other_model") from None
            raise
        if len(found.vectors[0]) != size:
            raise Refused(
                409,
                f"The collection takes vectors of {size} numbers, and {found.model} gives {len(found.vectors[0])}.",
                code="other_model",
            )
        if canary:
            known = struct.unpack(f"<{size}f", b64decode(canary))
            _check_canaries(backend, found, [cosine(known, vector) for vector in found.canaries])
        return found

    def _sparse(self, settings, texts):
        backend = self.app.extensions["embedders"].backend("sparse")
        canary = settings.get("sparse_canary")
        check = _of_model(settings.get("sparse_model"))
        found = backend.sparse(texts, truncate=True, check=check, canary=CANARY if canary else None)
        if canary:
            _check_canaries(backend, found, [sparse_cosine(canary, vector) for vector in found.canaries])
        return found

    def search(self, settings, query, *, mode, vector, limit, candidates, condition, method, k, weights, rerank):
        """{hits: [{id, score, payload, ranks, fused_score?}] best first, milliseconds, query_truncated?}.

        vector: of the query, if the caller has one; candidates: how many of each ranking are fused, and reranked.
        """
        name, identity = settings["name"], settings.get("identity")
        began = time.perf_counter()
        queries, notes = _queries(self, settings, query, mode, vector)
        queries = [pair for pair in queries if pair[1]]
        embedded = time.perf_counter()
        rankings = self.store().search(name, identity, queries, candidates, condition) if queries else []
        ranked = dict(zip([kind for kind, _ in queries], rankings, strict=True))
        best = fusion.best(_fused(ranked, method, k, weights), candidates if rerank else limit)
        payloads = self.store().fetch(name, identity, [point for point, _ in best]) if best else {}
        best = [pair for pair in best if pair[0] in payloads]  # one may have been removed meanwhile
        fused, searched = dict(best), time.perf_counter()
        if rerank and best:
            texts = [payloads[point].get("text") or "" for point, _ in best]
            told = self.app.extensions["embedders"].backend("rerank").rerank(query, texts, truncate=True)
            again = {point: score for (point, _), score in zip(best, told.vectors, strict=True)}
            best = fusion.best(again, limit)
        done = time.perf_counter()
        places = {kind: {p: (n, s) for n, (p, s) in enumerate(rows, 1)} for kind, rows in ranked.items()}
        hits = []
        for point, score in best:
            ranks = {kind: rows[point] for kind, rows in places.items() if point in rows}
            ranks = {kind: {"rank": rank, "score": own} for kind, (rank, own) in ranks.items()}
            more = {"fused_score": fused[point]} if rerank else {}
            hits.append({"id": point, "score": score, "ranks": ranks, "payload": payloads[point]} | more)
        took = {"embed": embedded - began, "search": searched - embedded, "rerank": done - searched}
        milliseconds = {key: round(1000 * value, 1) for key, value in took.items()}
        return {"hits": hits, "milliseconds": milliseconds} | notes

    def close(self):
        """Stop the ingests, which go on at the next start, and end the embedded store's process."""
        self.ingests.close()
        if self._store is not None:
            self._store.close()


def _of_model(wish):
    """check(dialect), which refuses (409) another model than `wish`; None, as all are, where none is known."""

    def check(dialect):
        if dialect.model != wish:
            raise Refused(
                409,
                f"The collection's vectors are of the model {wish}, and {dialect.model} is served now: they cannot be "
                "compared. Serve the first again, or put the documents into a new collection.",
                code="other_model",
            )

    return check if wish else None


def _check_canaries(backend, found, likenesses):
    if not all(likeness >= ALIKE for likeness in likenesses):
        raise Refused(
            409,
            f"{backend.where} calls its model {found.model}, as it did when the collection was made, but gives other "
            "vectors than then: they cannot be compared. Serve the first model again, or put the documents into a new "
            "collection.",
            code="other_model",
        )


def cosine(a, b):
    """The cosine of the angle between two vectors of one length; 0 where one of them is all zeros."""
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def sparse_cosine(a, b):
    """The same of two sparse vectors, (indices, values) each; two without a number are alike."""
    one, other = dict(zip(*a, strict=True)), dict(zip(*b, strict=True))
    if not one and not other:
        return 1.0
    places = sorted(one.keys() | other.keys())
    return cosine([one.get(n, 0.0) for n in places], [other.get(n, 0.0) for n in places])


@functools.cache
def bm25(language):
    """Qdrant Edge's BM25 for a language. Raises ValueError for one it does not know."""
    import qdrant_edge

    return qdrant_edge.Bm25(qdrant_edge.Bm25Config(language=language))


def words(language, text, query):
    """(indices, values) of a text's words, without endings and stop words."""
    model = bm25(language)
    found = model.embed_query(text) if query else model.embed_document(text)
    return list(found.indices), list(found.values)


def _queries(engine, settings, query, mode, vector):
    """([("dense", vector), ("sparse", (indices, values))] as the mode asks, notes for the answer)."""
    found, notes = [], {}
    kinds = [kind for kind in KINDS if mode in (kind, "hybrid") and not (kind == "dense" and vector is not None)]
    dense, sparse, cut = engine.vectors(settings, [query], query=True, kinds=kinds)
    dense, sparse = vector if vector is not None else dense and dense[0], sparse and sparse[0]
    if cut:
        notes["query_truncated"] = True
    if mode != "sparse":
        found.append(("dense", dense))
    if mode != "dense":
        found.append(("sparse", sparse if sparse and sparse[0] else None))
    return found, notes


def _fused(ranked, method, k, weights):
    if len(ranked) < 2:
        return dict(next(iter(ranked.values()), []))
    rankings, shares = list(ranked.values()), [weights[kind] for kind in ranked]
    return fusion.rrf(rankings, shares, k) if method == "rrf" else fusion.dbsf(rankings, shares)
