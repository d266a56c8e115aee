"""A small Qdrant server for tests: as much REST as webui/gateway/store.py speaks, over the client's local mode.

python tests/qdrant_server.py     prints its URL as the first line
"""

from __future__ import annotations

import json
import re
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from qdrant_client import QdrantClient, models

warnings.simplefilter("ignore")
SHELF, LOCK = QdrantClient(":memory:"), threading.Lock()
ROUTES = []


class Refused(Exception):
    """status, text"""


def route(method, pattern):
    def mark(function):
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return mark


def existing(name):
    if not SHELF.collection_exists(name):
        raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
    return name


@route("GET", r"/collections")
def collections(_):
    return SHELF.get_collections()


@route("GET", r"/collections/([\w-]+)/exists")
def exists(_, name):
    return {"exists": SHELF.collection_exists(name)}


@route("GET", r"/collections/([\w-]+)")
def collection(_, name):
    return SHELF.get_collection(existing(name))


@route("PUT", r"/collections/([\w-]+)")
def create(body, name):
    if SHELF.collection_exists(name):
        raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
    wish = models.CreateCollection.model_validate(body)
    return SHELF.create_collection(
        name, vectors_config=wish.vectors, sparse_vectors_config=wish.sparse_vectors, metadata=wish.metadata
    )


@route("DELETE", r"/collections/([\w-]+)")
def delete(_, name):
    return SHELF.delete_collection(name)


@route("PUT", r"/collections/([\w-]+)/index")
def index(_, name):
    existing(name)
    return {"operation_id": 0, "status": "completed"}


@route("PUT", r"/collections/([\w-]+)/points")
def upsert(body, name):
    return SHELF.upsert(existing(name), models.PointsList.model_validate(body).points)


@route("PUT", r"/collections/([\w-]+)/points/payload")
def payload(body, name):
    return SHELF.overwrite_payload(existing(name), body["payload"], points=body["points"])


@route("POST", r"/collections/([\w-]+)/points/scroll")
def scroll(body, name):
    wish = models.ScrollRequest.model_validate(body)
    points, following = SHELF.scroll(
        existing(name), wish.filter, limit=wish.limit, offset=wish.offset, with_payload=wish.with_payload
    )
    return models.ScrollResult(points=points, next_page_offset=following)


@route("POST", r"/collections/([\w-]+)/points/delete")
def remove(body, name):
    return SHELF.delete(existing(name), models.PointIdsList.model_validate(body))


@route("POST", r"/collections/([\w-]+)/points/query/batch")
def query(body, name):
    return SHELF.query_batch_points(existing(name), models.QueryRequestBatch.model_validate(body).searches)


@route("POST", r"/collections/([\w-]+)/points")
def retrieve(body, name):
    return SHELF.retrieve(existing(name), body["ids"], with_payload=True)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, form, *arguments):
        pass

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        path, status, result = self.path.partition("?")[0], 200, None
        try:
            for method, pattern, function in ROUTES:
                match = pattern.fullmatch(path)
                if match and method == self.command:
                    with LOCK:
                        result = plain(function(body, *match.groups()))
                    break
            else:
                raise Refused(404, "")
            told = {"result": result, "status": "ok", "time": 0.0}
        except Refused as refused:
            status, text = refused.args
            told = {"status": {"error": text}, "time": 0.0}
        except ValueError as error:
            status, told = 400, {"status": {"error": f"Wrong input: {error}"}, "time": 0.0}
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = answer


def plain(value):
    """JSON of what the client's local mode gives."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
