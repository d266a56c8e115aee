"""Where search keeps its points: an embedded Qdrant in the state folder, or a Qdrant server. One small interface.

A collection's settings: {dimensions, distance: cosine|dot|euclid, sparse: model|bm25|None, language, model, shortened,
identity, canary, sparse_model, sparse_canary}. identity tells it from others that have had its name, and whoever reads
or writes says which is meant; the canaries are a known text's vectors by the models that all its vectors are of.
A point has a dense vector, perhaps a sparse one, and a payload {document, chunk, text, start, end, metadata, stamp}.

Both stores have the methods of edge.Shelf: collections, collection, create, delete, upsert, overwrite, stamps, remove,
search, fetch, tidy. They raise Missing, Replaced, Exists, Wrong, Unavailable.
"""

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import weakref
from multiprocessing.connection import Connection
from pathlib import Path

from webui import cores

SLOW = 120.0  # seconds after which the embedded store's process is taken for hung
WAITING = 64  # calls that may wait for it
PAGE = 1000
PATIENCE = 5.0  # seconds that the store's process has to make everything durable, once it is told to end
KEPT = ("model", "language", "shortened", "identity", "canary", "sparse_model", "sparse_canary")  # as Qdrant's metadata
LOCAL = Path(__file__).with_name("edge.py")


class Missing(Exception):
    """There is no such collection. Its argument is the name."""

    def __str__(self):
        return f"There is no collection {self.args[0]}."


class Replaced(Missing):
    """The collection that was meant is gone, and another has its name."""

    def __str__(self):
        return f"The collection {self.args[0]} was deleted meanwhile, and there is another of that name."


class Exists(Exception):
    """There is one of that name already."""

    def __str__(self):
        return f"There is a collection {self.args[0]} already."


class Wrong(Exception):
    """The store refuses what it was given, in its own words."""


class Unavailable(Exception):
    """The store cannot be used now; its text says why."""


class EdgeStore:
    """The embedded store: edge.py as a child process, started at the first use. Threads may share it."""

    def __init__(self, folder):
        self.folder, self._lock, self._room = Path(folder), threading.Lock(), threading.BoundedSemaphore(WAITING)
        self._process = self._pipe = self._socket = None
        self._over = False  # this process ends
        atexit.register(self._exit)

    def __getattr__(self, method):
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda *arguments: self._call(method, arguments)

    def close(self):
        """End the child: it makes everything durable and goes. The next call starts another."""
        with self._lock:
            self._end(PATIENCE)

    def _exit(self):
        """End the child for good. Who waits for its answer is told at once, as is whoever comes later."""
        self._over = True
        if not self._lock.acquire(blocking=False):
            self._hang_up()
            self._lock.acquire()  # whoever had it has found the child's answer cut short
        self._end(PATIENCE)
        self._lock.release()

    def _call(self, method, arguments):
        if not self._room.acquire(blocking=False):
            raise Unavailable("Too many searches wait for the embedded store. A Qdrant server is the way past that.")
        try:
            return self._ask(method, arguments)
        finally:
            self._room.release()

    def _ask(self, method, arguments):
        with self._lock:
            if not self._over and (self._process is None or self._process.poll() is not None):
                self._end()
                self._start()
            if self._over:  # looked at when there is a line that _exit() can cut
                raise Unavailable("Spark Control is being stopped.")
            try:
                self._pipe.send((method, arguments))
                if not self._pipe.poll(SLOW):
                    raise TimeoutError
                good, *answer = self._pipe.recv()
                if not good and answer[0] == "Unavailable":
                    self._end(PATIENCE)  # a child that could not open its folder goes once it has said so
            except (EOFError, OSError) as error:
                self._end(0.0 if isinstance(error, TimeoutError) else PATIENCE)
                raise Unavailable("The embedded store's process ended. It starts again at the next request.") from None
        if good:
            return answer[0]
        kind, text = answer
        raise KINDS.get(kind, Wrong)(text)

    def _start(self):
        ours, theirs = socket.socketpair()
        with theirs, cores.unpinned():
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(LOCAL), str(theirs.fileno()), str(self.folder)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={"PATH": os.environ.get("PATH", "")},
                start_new_session=True,  # Ctrl-C is for the server; the child goes when the server does
            )
        self._socket, self._pipe = ours, Connection(os.dup(ours.fileno()))

    def _hang_up(self):
        """Cut the line to the child, by which both sides find its end. Needs no lock."""
        if (line := self._socket) is not None:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def _end(self, patience=0.0):
        """End the child; it has `patience` seconds to go by itself. Needs the lock."""
        line, pipe, process = self._socket, self._pipe, self._process
        self._socket = self._pipe = self._process = None
        if pipe:
            pipe.close()
            line.close()
        if process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                return
            process.kill()
            process.wait()


KINDS = {kind.__name__: kind for kind in (Missing, Replaced, Exists, Unavailable)}  # of an error answer of edge.py


class ServerStore:
    """A Qdrant server, through qdrant-client.

    url: "http://ip:port"; gate: gives a context manager that each request is made in; client: another QdrantClient.
    """

    def __init__(self, url=None, where="Qdrant", silence=60.0, gate=contextlib.nullcontext, client=None):
        from qdrant_client import QdrantClient, models

        self.where, self.models, self.gate = where, models, gate
        self._locks, self._lock = weakref.WeakValueDictionary(), threading.Lock()
        self.client = client or QdrantClient(
            url=url, timeout=int(silence), check_compatibility=False, trust_env=False, prefer_grpc=False
        )

    def close(self):
        """Give the connections back."""
        self.client.close()

    @contextlib.contextmanager
    def _told(self, name=""):
        from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

        try:
            with self.gate():
                yield
        except UnexpectedResponse as error:
            text = _reason(error)
            if error.status_code == 404:
                raise Missing(name) from None
            if error.status_code == 409:
                raise Exists(name) from None
            if error.status_code in (401, 403):
                raise Unavailable(f"{self.where} asks for an API key, which Spark Control has not.") from None
            if error.status_code >= 500:
                raise Unavailable(f"{self.where} failed: {text}") from None
            raise Wrong(text) from None
        except (ResponseHandlingException, ApiException, OSError) as error:
            raise Unavailable(f"{self.where} does not answer.") from error
        except (json.JSONDecodeError, AssertionError) as error:  # the client's own word for an answer without a result
            raise Unavailable(f"{self.where} answers, but not as Qdrant does.") from error
        except ValueError as error:  # the client's own, of local mode too
            if "not found" in str(error):
                raise Missing(name) from None
            raise (Exists(name) if "already exists" in str(error) else Wrong(str(error)[:300])) from None

    @contextlib.contextmanager
    def _alone(self, name):
        """The time in which nobody else here makes, deletes or writes into the collection of that name."""
        with self._lock:
            mine = self._locks.setdefault(name, threading.Lock())
        with mine:
            yield

    @contextlib.contextmanager
    def _writing(self, name, identity):
        """The time in which the collection of that name is the one of that identity. Raises Missing, Replaced."""
        with self._alone(name):
            self._check(name, identity)
            yield

    def _check(self, name, identity):
        if self.collection(name).get("identity") != identity:
            raise Replaced(name)

    def collections(self):
        """[settings with name and points]; those that others made are `foreign`."""
        with self._told():
            names = sorted(item.name for item in self.client.get_collections().collections)
        found = []
        for name in names:
            with contextlib.suppress(Missing):
                found.append(self.collection(name))
        return found

    def collection(self, name):
        """The settings, the name and how many points there are."""
        with self._told(name):
            info = self.client.get_collection(name)
        metadata = info.config.metadata or {}
        dense = info.config.params.vectors
        dense = dense.get("dense") if isinstance(dense, dict) else None
        sparse = (info.config.params.sparse_vectors or {}).get("sparse")
        told = {"name": name, "points": info.points_count or 0}
        if dense is None:
            return told | {"foreign": True}
        kind = None if sparse is None else "bm25" if sparse.modifier == self.models.Modifier.IDF else "model"
        return told | {
            "dimensions": dense.size,
            "distance": dense.distance.value.lower(),
            "sparse": kind,
            **{key: metadata.get(key) for key in KEPT},
            "language": metadata.get("language", "english"),
            "shortened": bool(metadata.get("shortened")),
        }

    def create(self, name, settings):
        """Make an empty collection with vectors `dense` and, unless settings["sparse"] is None, `sparse`."""
        models = self.models
        distance = {"cosine": "Cosine", "dot": "Dot", "euclid": "Euclid"}[settings["distance"]]
        modifier = models.Modifier.IDF if settings["sparse"] == "bm25" else None
        with self._alone(name), self._told(name):
            if self.client.collection_exists(name):
                raise Exists(name)
            self.client.create_collection(
                name,
                vectors_config={"dense": models.VectorParams(size=settings["dimensions"], distance=distance)},
                sparse_vectors_config={"sparse": models.SparseVectorParams(modifier=modifier)}
                if settings["sparse"]
                else None,
                metadata={key: settings[key] for key in KEPT if settings.get(key) is not None},
            )
            self.client.create_payload_index(name, "document", models.PayloadSchemaType.KEYWORD, wait=True)

    def delete(self, name):
        """Delete a collection and all it holds."""
        with self._alone(name), self._told(name):
            if not self.client.collection_exists(name):
                raise Missing(name)
            self.client.delete_collection(name)

    def upsert(self, name, identity, points):
        """points: [(id, dense, (indices, values) or None, payload)]"""
        models, made = self.models, []
        for point, dense, sparse, payload in points:
            vector = {"dense": dense}
            if sparse and sparse[0]:
                vector["sparse"] = models.SparseVector(indices=sparse[0], values=sparse[1])
            made.append(models.PointStruct(id=point, vector=vector, payload=payload))
        with self._writing(name, identity), self._told(name):
            self.client.upsert(name, made, wait=True)

    def overwrite(self, name, identity, payloads):
        """payloads: {id: payload}, of points that stay as they are otherwise."""
        with self._writing(name, identity), self._told(name):
            for point, payload in payloads.items():
                self.client.overwrite_payload(name, payload, points=[point], wait=True)

    def stamps(self, name, identity, documents):
        """{document: {id: stamp}} of those documents' points."""
        self._check(name, identity)
        models, found, offset = self.models, {}, None
        match = models.MatchAny(any=list(documents))
        wanted = models.Filter(must=[models.FieldCondition(key="document", match=match)])
        while True:
            with self._told(name):
                records, offset = self.client.scroll(
                    name, wanted, limit=PAGE, offset=offset, with_payload=["document", "stamp"], with_vectors=False
                )
            for record in records:
                found.setdefault(record.payload["document"], {})[str(record.id)] = record.payload.get("stamp")
            if offset is None:
                return found

    def remove(self, name, identity, points):
        """points: [id]"""
        with self._writing(name, identity), self._told(name):
            self.client.delete(name, points_selector=self.models.PointIdsList(points=list(points)), wait=True)

    def search(self, name, identity, queries, limit, condition):
        """[[(id, score), best first]] of queries [("dense", vector) or ("sparse", (indices, values))]."""
        self._check(name, identity)
        models, asked = self.models, []
        wanted = models.Filter.model_validate(condition) if condition else None
        for kind, vector in queries:
            given = vector if kind == "dense" else models.SparseVector(indices=vector[0], values=vector[1])
            asked.append(models.QueryRequest(query=given, using=kind, filter=wanted, limit=limit))
        with self._told(name):
            found = self.client.query_batch_points(name, asked)
        return [[(str(point.id), point.score) for point in answer.points] for answer in found]

    def fetch(self, name, _identity, points):
        """{id: payload} of points that a search has just found."""
        with self._told(name):
            found = self.client.retrieve(name, list(points), with_payload=True, with_vectors=False)
        return {str(record.id): record.payload for record in found}

    def tidy(self, _name, _identity):
        """A server tidies up by itself."""


def _reason(error):
    """The sentence in a Qdrant server's error answer."""
    try:
        told = json.loads(error.content)["status"]["error"]
    except (ValueError, KeyError, TypeError):
        told = error.reason_phrase or f"status {error.status_code}"
    return " ".join(str(told).split())[:300]
