"""Search over collections: the store and the embedding servers joined, for whoever puts in or searches."""

import functools
import threading
import time
from pathlib import Path

from webui.gateway import fusion, ingest, services, store
from webui.gateway.errors import Refused


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

    def vectors(self, settings, texts, query=False):
        """(dense, sparse or None, positions of texts that were cut) of texts for that collection. Raises Refused."""
        backend = self.app.extensions["embedders"].backend("embed")
        model, wish = backend.dialect().model, settings.get("model")
        if wish and model != wish:
            raise Refused(
                409,
                f"The collection's vectors are of the model {wish}, and {model} is served now: they cannot be "
                "compared. Serve the first again, or put the documents into a new collection.",
                code="other_model",
            )
        size = settings["dimensions"]
        found = backend.embed(texts, truncate=True, dimensions=size if settings.get("shortened") else None)
        if len(found.vectors[0]) != size:
            raise Refused(
                409,
                f"The collection takes vectors of {size} numbers, and {model} gives {len(found.vectors[0])}.",
                code="other_model",
            )
        sparse, cut = None, set(found.truncated) | set(found.unknown)
        if settings["sparse"] == "bm25":
            sparse = [words(settings["language"], text, query) for text in texts]
        elif settings["sparse"] == "model":
            told = self.app.extensions["embedders"].backend("sparse").sparse(texts, truncate=True)
            sparse, cut = told.vectors, cut | set(told.truncated) | set(told.unknown)
        return found.vectors, sparse, sorted(cut)

    def search(self, settings, query, *, mode, vector, limit, candidates, condition, method, k, weights, rerank):
        """{hits: [{id, score, payload, ranks, fused_score?}] best first, milliseconds, query_truncated?}.

        vector: of the query, if the caller has one; candidates: how many of each ranking are fused, and reranked.
        """
        name = settings["name"]
        began = time.perf_counter()
        queries, notes = _queries(self, settings, query, mode, vector)
        queries = [pair for pair in queries if pair[1]]
        embedded = time.perf_counter()
        rankings = self.store().search(name, queries, candidates, condition) if queries else []
        ranked = dict(zip([kind for kind, _ in queries], rankings, strict=True))
        best = fusion.best(_fused(ranked, method, k, weights), candidates if rerank else limit)
        payloads = self.store().fetch(name, [point for point, _ in best]) if best else {}
        best = [pair for pair in best if pair[0] in payloads]  # one may have been removed meanwhile
        fused, searched = dict(best), time.perf_counter()
        if rerank and best:
            texts = [payloads[point].get("text") or " " for point, _ in best]
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
        """End the embedded store's process."""
        if self._store is not None:
            self._store.close()


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
    wants_model = (mode != "sparse" and vector is None) or (mode != "dense" and settings["sparse"] == "model")
    if wants_model:
        dense, sparse, cut = engine.vectors(settings | ({"sparse": None} if mode == "dense" else {}), [query], True)
        dense, sparse = dense[0], sparse[0] if sparse else None
        if cut:
            notes["query_truncated"] = True
    else:
        dense, sparse = None, words(settings["language"], query, True) if mode != "dense" else None
    if mode != "sparse":
        found.append(("dense", vector if vector is not None else dense))
    if mode != "dense":
        found.append(("sparse", sparse if sparse and sparse[0] else None))
    return found, notes


def _fused(ranked, method, k, weights):
    if len(ranked) < 2:
        return dict(next(iter(ranked.values()), []))
    rankings, shares = list(ranked.values()), [weights[kind] for kind in ranked]
    return fusion.rrf(rankings, shares, k) if method == "rrf" else fusion.dbsf(rankings, shares)
