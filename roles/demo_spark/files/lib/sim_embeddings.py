"""Embedding servers of one's own: the HTTP of TEI, vLLM, Infinity and a FlagEmbedding server, with made-up models.

    run.py HOST_FOLDER embeddings --host 127.0.0.12 --serve tei:embed:8080 --serve tei:rerank:8082

--serve DIALECT:TASK:PORT (task `all` where a dialect's server does several). Vectors come from the words and their
parts, hashed: the same text always gives the same vector, and texts that share words are near each other; another model
gives others. --weights NAME is another model that goes by the same name. A token is a word, and each text has two more.
`/requests` tells what was asked since the start, for tests.
"""

import argparse
import hashlib
import json
import math
import re
import sys
import threading
import time
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODELS = {"embed": "demo/embedder", "sparse": "demo/splade", "rerank": "demo/reranker", "all": "demo/m3"}
BATCH = 32
WORD = re.compile(r"\w+")
MAX_BODY = 64 << 20


def words(text):
    return [word.casefold() for word in WORD.findall(text)]


@lru_cache(100_000)
def places(feature, size):
    """Where a feature counts in a vector, and with which sign: [(index, sign)]."""
    digest = hashlib.blake2b(feature.encode(), digest_size=16).digest()
    return [
        (int.from_bytes(digest[n : n + 4], "big") % size, 1.0 if digest[n] & 128 else -1.0) for n in range(0, 16, 4)
    ]


def dense(text, size, weights=""):
    """The unit vector of a text: its words, and their beginnings, so that forms of a word are near each other."""
    vector = [0.0] * size
    for word in words(text) or [text]:
        for feature, weight in ((word, 1.0), (f"^{word[:4]}", 0.5)):
            for index, sign in places(weights + feature, size):
                vector[index] += sign * weight
    norm = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [round(value / norm, 7) for value in vector]


def sparse(text, weights=""):
    """{token id: weight} of a text."""
    found = {}
    for word in words(text):
        token = int.from_bytes(hashlib.blake2b((weights + word).encode(), digest_size=4).digest(), "big") % 250_000
        found[token] = found.get(token, 0) + 1
    return {token: round(math.log1p(count), 5) for token, count in found.items()}


def logit(query, text):
    """How well a text answers a query: the share of the query's words in it, from -6 to 6."""
    asked, there = set(words(query)), set(words(text))
    return 12 * len(asked & there) / max(1, len(asked)) - 6 - 0.001 * len(there)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


class Wrong(Exception):
    """An error answer: status, body."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address, dialect, task, options):
        super().__init__(address, Handler)
        self.dialect, self.task, self.options = dialect, task, options
        self.model = options.model or MODELS[task]
        self.weights = options.weights or options.model or ""
        self.asked, self.lock = {}, threading.Lock()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, form, *arguments):
        pass

    def do_GET(self):
        self.answer("GET", None)

    def do_POST(self):
        data = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), MAX_BODY))
        self.answer("POST", data)

    def answer(self, method, data):
        server, path = self.server, self.path.partition("?")[0]
        with server.lock:
            server.asked[path] = server.asked.get(path, 0) + 1
        headers = {}
        try:
            if path == "/requests":
                status, body = 200, server.asked
            else:
                try:
                    request = json.loads(data) if method == "POST" else None
                except ValueError:
                    raise Wrong(400, {"error": "not JSON", "error_type": "Validation"}) from None
                status, body = 200, DIALECTS[server.dialect](server, headers).answer(method, path, request)
        except Wrong as wrong:
            status, body = wrong.args
        except (KeyError, TypeError, ValueError) as error:
            status, body = 422, {"error": f"{type(error).__name__}: {error}", "detail": "malformed"}
        text = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)


class Dialect:
    """One request to a server. headers: what the answer's get."""

    def __init__(self, server, headers):
        self.server, self.options, self.headers = server, server.options, headers

    def answer(self, method, path, request):
        name = f"{method.lower()}_{path.strip('/').replace('/', '_').replace('.', '_')}"
        handler = getattr(self, name, None)
        if handler is None:
            raise Wrong(404, {"detail": "Not Found", "error": f"no {path}"})
        if request is None:
            return handler()
        time.sleep(self.options.seconds)
        return handler(request)

    def count(self, text):
        return len(words(text)) + 2

    def cut(self, text):
        """The text as far as the model takes it."""
        ends = [match.end() for match in WORD.finditer(text)]
        room = self.options.max_tokens - 2
        return text[: ends[room - 1]] if len(ends) > room else text

    def dense(self, text):
        return dense(text, self.options.dimensions, self.server.weights)

    def sparse(self, text):
        return sparse(text, self.server.weights)

    def can(self, task):
        return self.server.task in (task, "all")


class Tei(Dialect):
    """text-embeddings-inference 1.8: one model, one task."""

    def get_health(self):
        return None

    def get_info(self):
        pooling = "splade" if self.can("sparse") else "cls"
        kind = (
            {"reranker": {"id2label": {"0": "LABEL_0"}}} if self.can("rerank") else {"embedding": {"pooling": pooling}}
        )
        return {
            "model_id": self.server.model,
            "model_sha": None,
            "model_dtype": "float16",
            "model_type": kind,
            "max_concurrent_requests": 512,
            "max_input_length": self.options.max_tokens,
            "max_batch_tokens": 16384,
            "max_client_batch_size": self.options.batch,
            "auto_truncate": False,
            "tokenization_workers": 4,
            "version": "1.8.2",
        }

    def need(self, task):
        if not self.can(task):
            raise Wrong(424, {"error": f"model is not a {task} model", "error_type": "Backend"})

    def texts(self, given, truncate, extra=0):
        given = [given] if isinstance(given, str) else given
        if not given:
            raise Wrong(400, {"error": "`inputs` cannot be empty", "error_type": "Empty"})
        if len(given) > self.options.batch:
            text = f"batch size {len(given)} > maximum allowed batch size {self.options.batch}"
            raise Wrong(413, {"error": text, "error_type": "Validation"})
        limit = self.options.max_tokens
        for text in given:
            tokens = self.count(text) + extra
            if tokens > limit and not truncate:
                text = f"`inputs` must have less than {limit} tokens. Given: {tokens}"
                raise Wrong(413, {"error": text, "error_type": "Validation"})
        self.headers["x-compute-tokens"] = str(sum(min(limit, self.count(text) + extra) for text in given))
        return [self.cut(text) for text in given]

    def post_embed(self, request):
        self.need("embed")
        size = request.get("dimensions") or self.options.dimensions
        if size > self.options.dimensions:
            raise Wrong(
                413, {"error": f"`dimensions` must be at most {self.options.dimensions}", "error_type": "Validation"}
            )
        return [shortened(self.dense(t), size) for t in self.texts(request["inputs"], request.get("truncate"))]

    def post_embed_sparse(self, request):
        self.need("sparse")
        texts = self.texts(request["inputs"], request.get("truncate"))
        return [[{"index": index, "value": value} for index, value in self.sparse(text).items()] for text in texts]

    def post_rerank(self, request):
        self.need("rerank")
        query = request["query"]
        texts = self.texts(request["texts"], request.get("truncate"), self.count(query))
        shape = float if request.get("raw_scores") else sigmoid
        rows = [{"index": number, "score": shape(logit(query, text))} for number, text in enumerate(texts)]
        return sorted(rows, key=lambda row: -row["score"])

    def post_tokenize(self, request):
        texts = [request["inputs"]] if isinstance(request["inputs"], str) else request["inputs"]
        return [[{"id": n, "text": "", "special": False} for n in range(self.count(text))] for text in texts]


class OpenAI(Dialect):
    """What the servers with OpenAI's shapes share."""

    owner = "openai"

    def get_v1_models(self):
        return {"object": "list", "data": [self.card()]}

    def card(self):
        return {"id": self.server.model, "object": "model", "created": 0, "owned_by": self.owner}

    def post_v1_embeddings(self, request):
        texts = self.texts(request)
        size = request.get("dimensions") or self.options.dimensions
        rows = [
            {"object": "embedding", "index": n, "embedding": shortened(self.dense(text), size)}
            for n, text in enumerate(texts)
        ]
        tokens = sum(self.count(text) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        # Rows come in another order than asked: an index is what tells.
        return {"object": "list", "data": rows[::-1], "model": self.server.model, "usage": usage}

    def texts(self, request):
        if request.get("model") != self.server.model:
            text = f"The model `{request.get('model')}` does not exist."
            raise Wrong(404, {"error": {"message": text, "type": "NotFoundError", "param": "model", "code": 404}})
        given = request["input"]
        given = [given] if isinstance(given, str) else given
        return [self.cut(text if isinstance(text, str) else " ".join(map(str, text))) for text in given]

    def ranked(self, request, raw=False):
        shape = float if raw else sigmoid
        rows = [
            {"index": number, "relevance_score": shape(logit(request["query"], self.cut(text)))}
            for number, text in enumerate(request["documents"])
        ]
        return {
            "id": "rerank-1",
            "model": self.server.model,
            "results": sorted(rows, key=lambda r: -r["relevance_score"]),
        }


class Vllm(OpenAI):
    """vLLM with a pooling model, and BGE-M3's io-processor for sparse vectors."""

    owner = "vllm"

    def get_health(self):
        return None

    def get_version(self):
        return {"version": "0.19.1"}

    def get_openapi_json(self):
        paths = ["/v1/models", "/v1/embeddings", "/rerank", "/v1/rerank", "/pooling", "/tokenize"]
        return {"openapi": "3.1.0", "info": {"title": "FastAPI"}, "paths": {path: {} for path in paths}}

    def card(self):
        return super().card() | {"root": self.server.model, "max_model_len": self.options.max_tokens}

    def texts(self, request):
        limit = self.options.max_tokens
        given = request["input"]
        for text in [given] if isinstance(given, str) else given:
            tokens = self.count(text) if isinstance(text, str) else len(text)
            if tokens > limit and not request.get("truncate_prompt_tokens"):
                text = f"This model's maximum context length is {limit} tokens. However, you requested {tokens} tokens."
                raise Wrong(400, {"error": {"message": text, "type": "BadRequestError", "param": None, "code": 400}})
        return super().texts(request)

    def post_rerank(self, request):
        return self.ranked(request)

    def post_pooling(self, request):
        rows = []
        for number, text in enumerate(request["data"]["input"]):
            weights = [
                {"token_id": token, "weight": weight, "token": None} for token, weight in self.sparse(text).items()
            ]
            # BGE-M3 tells a token as often as it stands in the text.
            row = {"object": "sparse&dense", "sparse_embedding": weights + weights[:1], "dense_embedding": []}
            rows.append({"index": number} | row)
        return {"request_id": None, "data": {"data": rows, "usage": {"prompt_tokens": 1, "total_tokens": 1}}}

    def post_tokenize(self, request):
        return {"count": self.count(request["prompt"]), "max_model_len": self.options.max_tokens, "tokens": []}


class Infinity(OpenAI):
    """michaelfeil/infinity: it cuts what is too long and says nothing."""

    owner = "infinity"

    def get_models(self):
        card = self.card() | {
            "backend": "torch",
            "capabilities": ["embed", "rerank"],
            "stats": {"batch_size": self.options.batch},
        }
        return {"object": "list", "data": [card]}

    def post_embeddings(self, request):
        return self.post_v1_embeddings(request)

    def post_rerank(self, request):
        return self.ranked(request, request.get("raw_scores"))


class Flag(Dialect):
    """A FastAPI server around BGEM3FlagModel and FlagReranker: it cuts what is too long and says nothing."""

    def get_openapi_json(self):
        paths = {"/encode": {}, "/compute_score": {}}
        return {"openapi": "3.1.0", "info": {"title": self.server.model, "version": "1"}, "paths": paths}

    def post_encode(self, request):
        texts = [self.cut(text) for text in request["sentences"]]
        answer = {}
        if request.get("return_dense", True):
            answer["dense_vecs"] = [self.dense(text) for text in texts]
        if request.get("return_sparse"):
            answer["lexical_weights"] = [{str(token): it for token, it in self.sparse(text).items()} for text in texts]
        return answer

    def post_compute_score(self, request):
        shape = sigmoid if request.get("normalize") else float
        scores = [shape(logit(query, self.cut(text))) for query, text in request["sentence_pairs"]]
        return {"scores": scores}


DIALECTS = {"tei": Tei, "vllm": Vllm, "infinity": Infinity, "flag": Flag, "openai": OpenAI}


def shortened(vector, size):
    """A matryoshka vector's first numbers, of length one again."""
    if size == len(vector):
        return vector
    norm = math.sqrt(sum(value * value for value in vector[:size])) or 1.0
    return [value / norm for value in vector[:size]]


def main(_host_folder, _program, arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--serve", action="append", required=True, help="DIALECT:TASK:PORT")
    parser.add_argument("--model")
    parser.add_argument("--weights")
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--seconds", type=float, default=0.0, help="how long each request takes")
    options = parser.parse_args(arguments)
    servers = []
    for wish in options.serve:
        dialect, task, port = wish.split(":")
        servers.append(Server((options.host, int(port)), dialect, task, options))
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 60}, daemon=True).start()
    # A port of 0 is any free one: the lines tell which.
    for server in servers:
        print(f"http://{options.host}:{server.server_port}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main("", "embeddings", sys.argv[1:])
