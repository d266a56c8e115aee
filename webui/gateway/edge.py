"""The process that owns the embedded store: Qdrant Edge's shards below one folder, one a collection.

    python edge.py FD FOLDER

It answers pickled (method, arguments) on the socket FD, one after the other, and ends with its parent. A process of its
own, because qdrant-edge holds Python's lock for as long as it works: seconds for a large upsert or a tidy-up, in which
the web server could answer nobody. Nothing of the web server is imported here.

FOLDER/<collection>/collection.json   the settings; written last, so a collection without it was never finished
FOLDER/<collection>/shard/            Qdrant Edge's own
FOLDER/.lock                          held for as long as this process lives
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import sys
import time
import uuid
from multiprocessing.connection import Connection
from pathlib import Path

import qdrant_edge as q

NOTE, LOCK_WAIT = "collection.json", 10.0
DISTANCES = {"cosine": q.Distance.Cosine, "dot": q.Distance.Dot, "euclid": q.Distance.Euclid}
# Kilobytes of vectors from which HNSW is built: never. Up to some 100,000 points looking at each vector is quick and
# exact, and building the graph takes a minute in which nothing else is answered.
NEVER = 1_000_000_000
CLAUSES = {"must", "should", "must_not", "min_should"}
INDEXES = 24  # of a collection's metadata
PLAIN = re.compile(r"[A-Za-z0-9_-]+")  # a step of a payload's path that needs no quotes


class Shelf:
    """The collections. Each public method is one that a message may call.

    Whoever reads or writes a collection says the identity of the one that is meant: another may have its name by now.
    """

    def __init__(self, folder):
        self.folder, self.shards, self.notes = Path(folder), {}, {}
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # for the process's life
        deadline = time.monotonic() + LOCK_WAIT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # The one before may still be finishing: it ends when it finds its parent gone.
                if time.monotonic() > deadline:
                    raise Unavailable(f"Another process holds the embedded store in {self.folder}.") from None
                time.sleep(0.1)
        for path in self.folder.iterdir():
            if path.is_dir() and not (path / NOTE).exists():
                shutil.rmtree(path, ignore_errors=True)  # not finished, or being deleted
            elif path.is_dir():
                self.notes[path.name] = json.loads((path / NOTE).read_text())

    def _shard(self, name, identity):
        if name not in self.notes:
            raise Missing(name)
        if self.notes[name].get("identity") != identity:
            raise Replaced(name)
        if name not in self.shards:
            self.shards[name] = q.EdgeShard.load(str(self.folder / name / "shard"))
        return self.shards[name]

    def collections(self):
        """[settings with name and points]"""
        return [self.collection(name) for name in sorted(self.notes)]

    def collection(self, name):
        """The settings, the name and how many points there are."""
        settings = self.notes.get(name, {})
        points = self._shard(name, settings.get("identity")).count(q.CountRequest())
        return {**settings, "name": name, "points": points}

    def create(self, name, settings):
        """Make an empty collection. settings: dimensions, distance, sparse (model, bm25 or None), identity and more."""
        if name in self.notes:
            raise Exists(name)
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "shard").mkdir(parents=True)
        # BM25's weights know nothing of how rare a word is, so the store weighs it.
        modifier = q.Modifier.Idf if settings["sparse"] == "bm25" else None
        distance = DISTANCES[settings["distance"]]
        config = q.EdgeConfig(
            vectors={
                # Half the memory to look through, and a score that differs in its fourth digit.
                "dense": q.EdgeVectorParams(
                    size=settings["dimensions"], distance=distance, datatype=q.VectorStorageDatatype.Float16
                )
            },
            sparse_vectors={"sparse": q.EdgeSparseVectorParams(modifier=modifier)} if settings["sparse"] else None,
            optimizers=q.EdgeOptimizersConfig(indexing_threshold=NEVER, default_segment_number=2),
        )
        shard = q.EdgeShard.create(str(folder / "shard"), config)
        shard.update(q.UpdateOperation.create_field_index("document", q.PayloadSchemaType.Keyword))
        shard.flush()
        fresh = folder / f"{NOTE}.new"
        fresh.write_text(json.dumps(settings))
        os.replace(fresh, folder / NOTE)
        self.shards[name], self.notes[name] = shard, settings

    def delete(self, name):
        """Delete a collection and all it holds."""
        if name not in self.notes:
            raise Missing(name)
        shard = self.shards.pop(name, None)
        del self.notes[name]
        (self.folder / name / NOTE).unlink()
        if shard:
            shard.close()
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def upsert(self, name, identity, points):
        """points: [(id, dense, (indices, values) or None, payload)]"""
        made = []
        for point, dense, sparse, payload in points:
            vector = {"dense": dense}
            if sparse and sparse[0]:
                vector["sparse"] = q.SparseVector(indices=sparse[0], values=sparse[1])
            made.append(q.Point(id=uuid.UUID(point), vector=vector, payload=stored(payload)))
        self._shard(name, identity).update(q.UpdateOperation.upsert_points(made))

    def overwrite(self, name, identity, payloads):
        """payloads: {id: payload}, of points that stay as they are otherwise."""
        shard = self._shard(name, identity)
        for point, payload in payloads.items():
            shard.update(q.UpdateOperation.overwrite_payload([uuid.UUID(point)], stored(payload)))

    def stamps(self, name, identity, documents):
        """{document: {id: stamp}} of those documents' points."""
        shard, found, offset = self._shard(name, identity), {}, None
        wanted = q.Filter(must=[q.FieldCondition(key="document", match=q.MatchAny(any=list(documents)))])
        while True:
            records, offset = shard.scroll(
                q.ScrollRequest(offset=offset, limit=1000, filter=wanted, with_payload=["document", "stamp"])
            )
            for record in records:
                found.setdefault(record.payload["document"], {})[str(record.id)] = record.payload.get("stamp")
            if offset is None:
                return found

    def remove(self, name, identity, points):
        """points: [id]"""
        gone = q.UpdateOperation.delete_points([uuid.UUID(point) for point in points])
        self._shard(name, identity).update(gone)

    def search(self, name, identity, queries, limit, condition):
        """[[(id, score), best first]] of queries [("dense", vector) or ("sparse", (indices, values))]."""
        shard, wanted, asked = self._shard(name, identity), filtered(condition), []
        self._index(shard, condition)
        for kind, vector in queries:
            given = vector if kind == "dense" else q.SparseVector(indices=vector[0], values=vector[1])
            asked.append(q.QueryRequest(limit=limit, query=q.Query.Nearest(given, using=kind), filter=wanted))
        found = shard.query_batch(q.QueryBatchRequest(asked))
        return [[(str(point.id), point.score) for point in points] for points in found]

    def _index(self, shard, condition):
        """Index what is filtered by, the first time: without one, each point's payload is read for each search."""
        wanted = dict(schemas(condition))
        if wanted:
            there = shard.info().payload_schema
            for key, schema in wanted.items():
                if key not in there and len(there) < INDEXES:
                    shard.update(q.UpdateOperation.create_field_index(key, schema))

    def fetch(self, name, identity, points):
        """{id: payload}"""
        ids = [uuid.UUID(point) for point in points]
        found = self._shard(name, identity).retrieve(ids, with_payload=True, with_vector=False)
        return {str(r.id): {key: r.payload[key] for key in r.payload if key != "bools"} for r in found}

    def tidy(self, name, identity):
        """Make durable what was written, and throw away what was deleted."""
        shard = self._shard(name, identity)
        shard.optimize()
        shard.flush()

    def close(self):
        """Make everything durable."""
        for shard in self.shards.values():
            with contextlib.suppress(Exception):
                shard.close()


class Missing(Exception):
    """There is no such collection."""


class Replaced(Exception):
    """There is one of that name, but another than is meant."""


class Exists(Exception):
    """There is one of that name."""


class Unavailable(Exception):
    """The store cannot be used now."""


def schemas(condition):
    """(key, the schema of an index that serves it) of each match and range in a filter.

    Only schemas that leave the results as they are where a field's values are of several types.
    """
    for item in conditions(condition or {}):
        if "match" in item:
            value = next(iter(item["match"].values()))
            value = (value or [None])[0] if isinstance(value, list) else value
            if isinstance(value, bool):
                yield "bools", q.PayloadSchemaType.Keyword
            elif isinstance(value, str):
                yield item["key"], q.PayloadSchemaType.Keyword
            elif "value" in item["match"]:
                yield item["key"], q.PayloadSchemaType.Float
        elif "range" in item:
            dates = any(isinstance(value, str) for value in item["range"].values())
            yield item["key"], q.PayloadSchemaType.Datetime if dates else q.PayloadSchemaType.Float


def conditions(condition):
    """Each condition of a filter and of the filters in it."""
    for kind, items in condition.items():
        for item in items["conditions"] if kind == "min_should" else items:
            if item.keys() <= CLAUSES:
                yield from conditions(item)
            else:
                yield item


def bools(value, path="metadata"):
    """["key=true"] of the booleans in metadata: qdrant-edge-py takes True for 1, so a match of a boolean finds none.

    The keys are paths as search's filters have them: quoted where they are not plain, [] for each of a list.
    """
    if isinstance(value, bool):
        return [f"{path}={value}".lower()]
    if isinstance(value, dict):
        steps = {key: key if PLAIN.fullmatch(key) else f'"{key}"' for key in value}
        return [told for key, item in value.items() for told in bools(item, f"{path}.{steps[key]}")]
    if isinstance(value, list):
        flat = [told for item in value if isinstance(item, bool) for told in bools(item, path)]
        return flat + [told for item in value for told in bools(item, f"{path}[]")]
    return []


def stored(payload):
    """A payload as it is kept: with what stands for its booleans."""
    told = bools(payload.get("metadata"))
    return payload | {"bools": told} if told else payload


def filtered(condition):
    """Qdrant Edge's Filter of Qdrant's JSON for one (api.filters.checked); None of None."""
    if not condition:
        return None
    clauses = {kind: [_condition(item) for item in items] for kind, items in condition.items() if kind != "min_should"}
    if least := condition.get("min_should"):
        made = [_condition(item) for item in least["conditions"]]
        clauses["min_should"] = q.MinShould(made, least["min_count"])
    return q.Filter(**clauses)


def _condition(item):
    if item.keys() <= CLAUSES:
        return filtered(item) or q.Filter()
    if "is_empty" in item:
        return q.IsEmptyCondition(item["is_empty"]["key"])
    if "is_null" in item:
        return q.IsNullCondition(item["is_null"]["key"])
    if "has_id" in item:
        return q.HasIdCondition({p if isinstance(p, int) else uuid.UUID(p) for p in item["has_id"]})
    if "values_count" in item:
        return q.FieldCondition(key=item["key"], values_count=q.ValuesCount(**item["values_count"]))
    if "range" in item:
        dates = any(isinstance(value, str) for value in item["range"].values())
        return q.FieldCondition(key=item["key"], range=(q.RangeDateTime if dates else q.RangeFloat)(**item["range"]))
    kind, value = next(iter(item["match"].items()))
    if isinstance(value, bool):
        return q.FieldCondition(key="bools", match=q.MatchValue(f"{item['key']}={value}".lower()))
    if isinstance(value, int) and abs(value) < 2**53:
        return q.FieldCondition(key=item["key"], range=q.RangeFloat(gte=value, lte=value))  # an index serves it
    return q.FieldCondition(key=item["key"], match=q.MatchValue(value) if kind == "value" else q.MatchAny(value))


def main(descriptor, folder):
    """Answer until the parent is gone. Every answer is (True, value) or (False, kind of error, text).

    Where the folder cannot be opened, one answer says so (kind Unavailable) and the process ends.
    """
    pipe = Connection(int(descriptor))
    shelf = broken = None
    try:
        shelf = Shelf(folder)
    except Unavailable as error:
        broken = error
    except Exception as error:
        broken = Unavailable(f"The embedded store in {folder} cannot be opened: {error}")
    while True:
        try:
            method, arguments = pipe.recv()
        except (EOFError, OSError):
            break
        try:
            if broken:
                raise broken
            answer = (True, getattr(shelf, method)(*arguments))
        except Exception as error:
            answer = (False, type(error).__name__, str(error))
        with contextlib.suppress(OSError):
            pipe.send(answer)
        if broken:
            break
    if shelf:
        shelf.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
