"""Embedding servers speak five dialects; this tells them apart and speaks each: texts in, vectors and scores out.

    TEI        Hugging Face's text-embeddings-inference: /info, /embed, /embed_sparse, /rerank
    vLLM       /version, /v1/embeddings, /rerank, /pooling (with BGE-M3's sparse io-processor)
    Infinity   /models (owned_by infinity), /embeddings, /rerank
    FlagEmbedding   a FastAPI server around BGEM3FlagModel: /encode (dense_vecs, lexical_weights), /compute_score
    OpenAI     anything else that answers /v1/embeddings

A dialect is found by asking (GET only) and kept until the server fails. Its model is not taken on trust: the server is
asked for its name again after each call, for another may stand at the address by now. A batch is split to the server's
limit; the order stays. A text that is too long is refused unless `truncate`, and then told by its position.
"""

import functools
import json
import math
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from webui.gateway.errors import Refused

BATCH = 32  # texts a request where the server tells no limit of its own
PARALLEL = 4  # requests of one call at a time
BUSY_WAITS = (0.2, 0.5, 1.0, 2.0)  # seconds between tries while the server says 429
PROBE_AGAIN = 600  # seconds a dialect is believed without a failure: another container may answer at the address now
SURE_BYTES = 510  # no tokenizer makes more tokens than bytes, and no model in use takes less than 512
STEADY = 3  # times that a call is made while the server's model changes under it
LARGEST = 65504  # what a vector is shorter than: the largest number in 16 bits, as which the embedded store reckons
WORDS = {"embed": "gives no embeddings", "sparse": "gives no sparse vectors", "rerank": "does not rerank"}
GROUPS = {"embed": "embeddings", "sparse": "sparse", "rerank": "rerank"}  # of the inventory
TOO_LONG = re.compile(r"less than \d+ tokens|maximum context length|longer than the maximum|max_model_len", re.I)


@dataclass(frozen=True)
class Dialect:
    """What a server is: its name, its model, which tasks it does, how many texts it takes, at which paths.

    told_at: the path at which it names its model, None where it does at none; told: how it does.
    """

    name: str
    model: str
    tasks: frozenset  # of "embed", "sparse", "rerank"
    batch: int = BATCH
    max_tokens: int | None = None
    prefix: str = ""
    tells_truncation: bool = True
    at: float = 0.0
    models: tuple = ()
    told_at: str | None = None
    told: tuple | None = None


@dataclass
class Vectors:
    """What came of texts. vectors: [[float]] or [(indices, values)]; truncated: positions of texts that were cut;
    unknown: positions of texts that may have been cut, by a server that does not tell; canaries: the canary's vectors,
    one of each request."""

    vectors: list
    model: str
    tokens: int | None = None
    truncated: list = field(default_factory=list)
    unknown: list = field(default_factory=list)
    canaries: list = field(default_factory=list)


class Backend:
    """One embedding server. Threads may share it.

    call(method, path, data=None, silence=None) -> an answer with status, headers {lower-case: value} and data (bytes);
    it raises Refused where there is none. where: what people call the server. carry(function): the same function for
    another thread, with whatever `call` looks for in this one.
    """

    def __init__(self, call, where, parallel=PARALLEL, carry=lambda function: function):
        self.call, self.where, self.parallel = call, where[:1].upper() + where[1:], parallel
        self.carry = carry
        self._dialect, self._lock = None, threading.Lock()

    # --- which dialect

    def dialect(self):
        """The Dialect, asked for once. Raises Refused 503 when nothing answers, 502 when nothing known does."""
        known = self._dialect
        if known and time.monotonic() - known.at < PROBE_AGAIN:
            return known
        with self._lock:
            known = self._dialect
            if known is None or time.monotonic() - known.at >= PROBE_AGAIN:
                self._dialect = known = replace(self._probe(), at=time.monotonic())
            return known

    def current(self):
        """The Dialect as the server tells it now. Raises Refused as dialect() does."""
        if (known := self._dialect) is not None:
            self._same(known)
        return self.dialect()

    def forget(self):
        """Ask again at the next call: the server failed, so it may be another one by now."""
        self._dialect = None

    def _same(self, dialect):
        """Whether the server still has that model, by the name it tells. Raises Refused as dialect() does."""
        if dialect.told_at is None or TOLD[dialect.name](self._look(dialect.told_at, None)) == dialect.told:
            return True
        if self._dialect is dialect:  # unless another thread has found out before
            self.forget()
        now = self.dialect()
        return (now.name, now.model) == (dialect.name, dialect.model)

    def _probe(self):
        info = self._look("/info")
        if isinstance(info, dict) and "model_id" in info and ("max_client_batch_size" in info or "model_type" in info):
            return tei(info)
        for prefix in ("", "/v1"):
            models = _cards(self._look(f"{prefix}/models"))
            if models and models[0].get("owned_by") == "infinity":
                return infinity(models, prefix)
        openapi = self._look("/openapi.json")
        paths = frozenset(openapi["paths"]) if isinstance(openapi, dict) and _is(openapi.get("paths"), dict) else ()
        said = self._look("/v1/models")
        models = _cards(said)
        if models and models[0].get("owned_by") == "vllm":
            return vllm(models, paths)
        if "/encode" in paths:
            return flag(openapi, paths)
        if models or "/v1/embeddings" in paths:
            names = tuple(str(card["id"]) for card in models) or ("default",)
            rerank = {"rerank"} & {path.rsplit("/", 1)[-1] for path in paths}
            return Dialect(
                "OpenAI",
                names[0],
                frozenset({"embed"} | rerank),
                tells_truncation=False,
                models=names,
                told_at="/v1/models" if models else None,
                told=_told_by_cards(said),
            )
        raise Refused(
            502,
            f"{self.where} answers, but as no embedding server known here "
            "(TEI, vLLM, Infinity, FlagEmbedding, OpenAI).",
            code="bad_upstream",
        )

    def _look(self, path, silence=5.0):
        """The JSON at a path, None where there is none. Raises Refused 503 when nothing answers.

        silence: seconds, None for the service's own: a server that computes in its only thread answers afterwards.
        """
        try:
            answer = self.call("GET", path, silence=silence)
        except Refused as refused:
            # A web page, or nonsense, at one address says nothing of the others.
            if refused.status == 502:
                return None
            raise
        if answer.status == 503:
            raise Refused(503, f"{self.where} is not ready yet.", code="service_unavailable", retry_after=5)
        return _json(answer) if answer.status == 200 else None

    # --- asking

    def ask(self, path, body):
        """(JSON, headers) of a POST. Raises Refused: 400 in the server's own words, 429, 502, 503, 504."""
        data = json.dumps(body, separators=(",", ":")).encode()
        for wait in (*BUSY_WAITS, None):
            try:
                answer = self.call("POST", path, data)
            except Refused as refused:
                if refused.status >= 500:
                    self.forget()
                raise
            if answer.status != 429 or wait is None:
                break
            time.sleep(wait)
        if answer.status == 200:
            said = _json(answer)
            if said is None:
                self.forget()
                raise self.odd("its answer is not JSON")
            return said, answer.headers
        raise self._refused(answer, path)

    def _refused(self, answer, path):
        told, status = _message(answer), answer.status
        if status == 429:
            return Refused(429, f"{self.where} has too much to do just now.", code="overloaded", retry_after=2)
        if status in (404, 405):
            self.forget()
            return self.odd(told if told and status == 404 and "model" in told else f"it has no {path} any more")
        if status == 503:
            self.forget()
            return Refused(
                503,
                f"{self.where} is not ready: {told or 'status 503'}",
                code="service_unavailable",
                retry_after=5,
            )
        if status >= 500:
            self.forget()
            return self.odd(told or f"it answered with status {status}")
        if status == 424:  # TEI: the model cannot do this, or the backend failed
            return self.odd(told or "it could not compute an answer")
        if status in (401, 403):
            return self.odd("it asks for an API key, which Spark Control has not")
        code = "context_length_exceeded" if TOO_LONG.search(told) else "invalid_value"
        return Refused(400, f"{self.where} refuses: {told or f'status {status}'}", code=code)

    def odd(self, what):
        """The refusal for an answer that makes no sense."""
        return Refused(502, f"{self.where} failed: {what}.", code="bad_upstream")

    def can(self, task):
        """Whether the server's model does that task: "embed", "sparse" or "rerank"."""
        return task in self.dialect().tasks

    def cannot(self, task):
        """The refusal of a task that the server's model does not do."""
        dialect = self.dialect()
        return Refused(
            404,
            f"{self.where} ({dialect.name}, {dialect.model}) {WORDS[task]}. "
            f"A server that does goes into the inventory's group {GROUPS[task]}.",
            code="service_not_configured",
        )

    def _steadily(self, task, check, ask):
        """What ask(dialect) gives when one model has given all of it: the server names the same before and after.

        check(dialect): raises Refused if the caller wants another model; None if any will do.
        """
        for _ in range(STEADY):
            dialect = self.dialect()
            try:
                if task not in dialect.tasks:
                    raise self.cannot(task)
                if check:
                    check(dialect)
                found = ask(dialect)
            except Refused as refused:
                # That may be because of the server that was there before.
                if refused.status in (429, 503, 504) or self._same(dialect):
                    raise
                continue
            if self._same(dialect):
                return found
        raise Refused(503, f"{self.where} changes its model just now.", code="service_unavailable", retry_after=5)

    # --- the tasks

    def embed(self, texts, *, truncate=False, dimensions=None, check=None, canary=None):
        """Vectors of texts: dense, in their order. texts: [str], or lists of token ids, which only vLLM takes.

        canary: a text that goes with each request, so that its vector tells whose the others are.
        """

        def ask(dialect):
            if any(not isinstance(text, str) for text in texts) and dialect.name != "vLLM":
                raise Refused(
                    400,
                    f"The server's model ({dialect.model}) takes text, not token ids. "
                    "In LangChain's OpenAIEmbeddings set check_embedding_ctx_length=False.",
                    code="invalid_value",
                    param="input",
                )
            found = self._in_batches(
                dialect, texts, truncate, lambda part, cut: _dense(self, dialect, part, cut, dimensions), canary=canary
            )
            size = {len(vector) for vector in found.vectors + found.canaries}
            if len(size) > 1 or 0 in size:
                raise self.odd("its vectors differ in length")
            if dimensions and size and dimensions not in size:
                raise Refused(
                    400,
                    f"{dialect.model} gives {size.pop()} dimensions and cannot give {dimensions}.",
                    code="invalid_value",
                    param="dimensions",
                )
            return found

        return self._steadily("embed", check, ask)

    def sparse(self, texts, *, truncate=False, check=None, canary=None):
        """Vectors of texts: sparse, (indices, values) each, indices unique and ascending. canary: as for embed()."""
        return self._steadily(
            "sparse",
            check,
            lambda dialect: self._in_batches(
                dialect, texts, truncate, lambda part, cut: _sparse(self, dialect, part, cut), canary=canary
            ),
        )

    def rerank(self, query, texts, *, truncate=False, raw_scores=False, check=None):
        """Vectors whose vectors are the scores of the texts, in their order; higher fits the query better.

        A text without a word in it is not sent: it scores lower than any other.
        """
        positions = [n for n, text in enumerate(texts) if text.strip()]

        def ask(dialect):
            found = self._in_batches(
                dialect,
                texts,
                truncate,
                lambda part, cut: _rank(self, dialect, query, part, cut, raw_scores),
                query,
                positions=positions,
            )
            lowest = min(found.vectors, default=1.0)
            scores = dict(zip(positions, found.vectors, strict=True))
            found.vectors = [scores.get(n, 0.0 if lowest > 0 else lowest - 1) for n in range(len(texts))]
            return found

        return self._steadily("rerank", check, ask)

    def _in_batches(self, dialect, texts, truncate, call, query=None, *, canary=None, positions=None):
        """The Vectors of the texts at those positions (all unless given), by as many call(texts, cut) as it takes."""
        positions = list(range(len(texts))) if positions is None else positions
        size = dialect.batch - 1 if canary and dialect.batch > 1 else dialect.batch
        parts = [positions[start : start + size] for start in range(0, len(positions), size)]
        if canary and dialect.batch == 1:
            parts.append([])
        also = [canary] if canary and dialect.batch > 1 else []

        def one(positions):
            part = [texts[position] for position in positions] + (also if positions else [canary])
            try:
                vectors, tokens = call(part, False)
                cut = []
            except Refused as refused:
                if refused.code != "context_length_exceeded":
                    raise
                numbers = self._too_long(dialect, part, query)
                cut = [positions[number] for number in numbers if number < len(positions)]
                if not truncate:
                    raise _longer(refused, cut, dialect) from None
                vectors, tokens = call(part, True)
            if len(vectors) != len(part):
                raise self.odd(f"it gave {len(vectors)} answers to {len(part)} texts")
            return vectors[: len(positions)], vectors[len(positions) :], tokens, cut

        if len(parts) > 1:
            with ThreadPoolExecutor(min(self.parallel, len(parts))) as pool:
                jobs = [self.carry(functools.partial(one, positions)) for positions in parts]
                done = list(pool.map(lambda job: job(), jobs))
        else:
            done = [one(part) for part in parts]
        found = Vectors([], dialect.model)
        for vectors, canaries, tokens, cut in done:
            found.vectors += vectors
            found.canaries += canaries
            found.truncated += cut
            found.tokens = None if tokens is None else (found.tokens or 0) + tokens
        if not dialect.tells_truncation:
            extra = len(query.encode()) if query else 0
            found.unknown = [n for n in positions if len(texts[n].encode()) + extra > SURE_BYTES]
        return found

    def _too_long(self, dialect, texts, query):
        """Which of the texts have more tokens than the model takes, by the server's own tokenizer."""
        limit = dialect.max_tokens
        counts = []
        try:
            if dialect.name == "TEI":
                said = []
                for start in range(0, len(texts), dialect.batch):
                    said += self.ask("/tokenize", {"inputs": texts[start : start + dialect.batch]})[0]
                counts = [len(tokens) for tokens in said]
                own = len(self.ask("/tokenize", {"inputs": [query]})[0][0]) if query else 0
                counts = [count + own for count in counts]
            elif dialect.name == "vLLM":
                for text in texts:
                    if not isinstance(text, str):
                        counts.append(len(text))
                        continue
                    said = self.ask("/tokenize", {"model": dialect.model, "prompt": text})[0]
                    counts.append(int(said["count"]))
                    limit = limit or int(said["max_model_len"])
        except (Refused, TypeError, ValueError, KeyError, IndexError):
            counts = []
        if not limit or len(counts) != len(texts):
            # Nobody tells which: each may be.
            return [n for n, text in enumerate(texts) if not isinstance(text, str) or len(text.encode()) > SURE_BYTES]
        found = [number for number, count in enumerate(counts) if count > limit]
        return found or [max(range(len(texts)), key=counts.__getitem__)]


def _longer(refused, cut, dialect):
    limit = f" ({dialect.max_tokens} tokens)" if dialect.max_tokens else ""
    which = ", ".join(map(str, cut[:10])) + (", …" if len(cut) > 10 else "")
    return Refused(
        400,
        f"Longer than {dialect.model} takes{limit}: input {which}. Send it in pieces, or with truncate: true. "
        + refused.message,
        code="context_length_exceeded",
        param="input",
    )


# --- what a server says of itself


def tei(info):
    """The Dialect of TEI's /info. A container serves one model, so it does one task."""
    kind = info.get("model_type")
    kind = kind if isinstance(kind, dict) else {str(kind): {}}
    name, more = next(iter(kind.items()), ("embedding", {}))
    pooling = str((more or {}).get("pooling", "")) if isinstance(more, dict) else ""
    task = {"reranker": "rerank", "Reranker": "rerank"}.get(name, "sparse" if pooling.lower() == "splade" else "embed")
    limit = info.get("max_client_batch_size")
    tokens = info.get("max_input_length")
    return Dialect(
        "TEI",
        str(info["model_id"]),
        frozenset({task}),
        batch=limit if _is(limit, int) and limit > 0 else BATCH,
        max_tokens=tokens if _is(tokens, int) else None,
        told_at="/info",
        told=_told_by_info(info),
    )


def infinity(cards, prefix):
    """The Dialect of Infinity's /models. It may serve several models; each card tells its capabilities."""
    tasks, first = set(), {}
    for card in cards:
        for capability in card.get("capabilities") or ("embed",):
            if capability in ("embed", "rerank"):
                tasks.add(capability)
                first.setdefault(capability, str(card["id"]))
    model = first.get("embed") or first.get("rerank") or str(cards[0]["id"])
    names = tuple(str(card["id"]) for card in cards)
    sizes = [c["stats"]["batch_size"] for c in cards if _is(c.get("stats"), dict) and "batch_size" in c["stats"]]
    batch = sizes[0] if sizes and _is(sizes[0], int) and sizes[0] > 0 else BATCH
    # models: the first is the one to embed with, the last the one to rerank with.
    names = (model, *(n for n in names if n not in first.values()), first.get("rerank") or model)
    return Dialect(
        "Infinity",
        model,
        frozenset(tasks),
        batch=batch,
        prefix=prefix,
        tells_truncation=False,
        models=names,
        told_at=f"{prefix}/models",
        told=_told_by_cards({"data": cards}),
    )


def vllm(cards, paths):
    """The Dialect of vLLM's /v1/models; its OpenAPI paths tell what the model can do."""
    tasks = {"embed"} if not paths or "/v1/embeddings" in paths else set()
    tasks |= {"rerank"} if {"/rerank", "/v1/rerank"} & set(paths) else set()
    tasks |= {"sparse"} if "/pooling" in paths else set()
    limit = cards[0].get("max_model_len")
    return Dialect(
        "vLLM",
        str(cards[0]["id"]),
        frozenset(tasks),
        batch=128,
        max_tokens=limit if _is(limit, int) else None,
        told_at="/v1/models",
        told=_told_by_cards({"data": cards}),
    )


def flag(openapi, paths):
    """The Dialect of a FlagEmbedding-style server; its OpenAPI title names the model."""
    told = _told_by_openapi(openapi)
    tasks = {"embed", "sparse"} | ({"rerank"} if {"/compute_score", "/rerank"} & set(paths) else set())
    prefix = "/compute_score" if "/compute_score" in paths else "/rerank"
    return Dialect(
        "FlagEmbedding",
        told[0],
        frozenset(tasks),
        prefix=prefix,
        tells_truncation=False,
        told_at="/openapi.json",
        told=told,
    )


def _told_by_info(info):
    return (str(info.get("model_id")), info.get("model_sha")) if isinstance(info, dict) else None


def _told_by_cards(said):
    return tuple((str(card["id"]), card.get("root")) for card in _cards(said)) or None


def _told_by_openapi(openapi):
    info = openapi.get("info") if isinstance(openapi, dict) else None
    info = info if isinstance(info, dict) else {}
    return str(info.get("title") or "BAAI/bge-m3")[:200], str(info.get("version"))


TOLD = {"TEI": _told_by_info, "FlagEmbedding": _told_by_openapi}
TOLD |= dict.fromkeys(("Infinity", "vLLM", "OpenAI"), _told_by_cards)


# --- each task in each dialect: (answers in the texts' order, tokens or None)


def _dense(backend, dialect, texts, truncate, dimensions):
    if dialect.name == "TEI":
        body = {"inputs": texts, "truncate": truncate, "normalize": True}
        said, headers = backend.ask("/embed", body | ({"dimensions": dimensions} if dimensions else {}))
        return [_floats(backend, vector) for vector in _list(backend, said)], _header(headers, "x-compute-tokens")
    if dialect.name == "FlagEmbedding":
        said, _ = backend.ask("/encode", {"sentences": texts, "return_dense": True, "return_sparse": False})
        found = said.get("dense_vecs") if isinstance(said, dict) else said
        return [_floats(backend, vector) for vector in _list(backend, found)], None
    body = {"model": dialect.model, "input": texts, "encoding_format": "float"}
    if dimensions:
        body["dimensions"] = dimensions
    if truncate:
        body["truncate_prompt_tokens"] = -1
    path = f"{dialect.prefix}/embeddings" if dialect.name == "Infinity" else "/v1/embeddings"
    said, _ = backend.ask(path, body)
    rows = _ordered(backend, said.get("data") if isinstance(said, dict) else None, len(texts))
    return [_floats(backend, row.get("embedding")) for row in rows], _usage(said)


def _sparse(backend, dialect, texts, truncate):
    if dialect.name == "TEI":
        said, headers = backend.ask("/embed_sparse", {"inputs": texts, "truncate": truncate})
        return [folded(backend, row) for row in _list(backend, said)], _header(headers, "x-compute-tokens")
    if dialect.name == "FlagEmbedding":
        said, _ = backend.ask("/encode", {"sentences": texts, "return_dense": False, "return_sparse": True})
        found = said.get("lexical_weights") if isinstance(said, dict) else said
        return [folded(backend, row) for row in _list(backend, found)], None
    body = {"model": dialect.model, "task": "plugin", "data": {"input": texts}}
    if truncate:
        body["data"]["truncate_prompt_tokens"] = -1
    said, _ = backend.ask("/pooling", body)
    inner = said.get("data") if isinstance(said, dict) else None
    inner = inner if isinstance(inner, dict) else said
    rows = _ordered(backend, inner.get("data") if isinstance(inner, dict) else None, len(texts))
    return [folded(backend, row.get("sparse_embedding", row.get("data"))) for row in rows], _usage(inner)


def _rank(backend, dialect, query, texts, truncate, raw):
    headers = {}
    if dialect.name == "TEI":
        body = {"query": query, "texts": texts, "truncate": truncate, "raw_scores": raw}
        said, headers = backend.ask("/rerank", body)
    elif dialect.name == "FlagEmbedding" and dialect.prefix == "/compute_score":
        pairs = {"sentence_pairs": [[query, text] for text in texts], "normalize": not raw}
        said, _ = backend.ask("/compute_score", pairs)
        scores = said.get("scores", said.get("score")) if isinstance(said, dict) else said
        scores = scores if isinstance(scores, list) else [scores]
        return _floats(backend, scores), None
    else:
        model = dialect.models[-1] if dialect.models else dialect.model
        body = {"model": model, "query": query, "documents": texts}
        if dialect.name == "Infinity":
            body |= {"raw_scores": raw, "return_documents": False}
        if truncate:
            body["truncate_prompt_tokens"] = -1
        path = {"Infinity": f"{dialect.prefix}/rerank", "OpenAI": "/v1/rerank"}.get(dialect.name, "/rerank")
        said, _ = backend.ask(path, body)
    rows = said.get("results") if isinstance(said, dict) else said
    scores = {}
    for row in _list(backend, rows):
        if _is(row, dict) and _is(row.get("index"), int):
            scores[row["index"]] = row.get("relevance_score", row.get("score"))
    if sorted(scores) != list(range(len(texts))):
        raise backend.odd("it did not score every text")
    tokens = _header(headers, "x-compute-tokens") if headers else _usage(said)
    return _floats(backend, [scores[number] for number in range(len(texts))]), tokens


def folded(backend, row):
    """(indices, values) of one sparse vector in any of the shapes in the wild: indices unique (the larger value wins),
    ascending, without zeros.

    Shapes: [{index, value}] TEI, [{token_id, weight}] vLLM, {"token id": weight} FlagEmbedding, {indices, values}.
    """
    try:
        if isinstance(row, dict) and set(row) >= {"indices", "values"}:
            pairs = zip(row["indices"], row["values"], strict=True)
        elif isinstance(row, dict):
            pairs = row.items()
        else:
            pairs = [
                (item["index"], item["value"]) if "index" in item else (item["token_id"], item["weight"])
                for item in row
            ]
        found = {}
        for index, value in pairs:
            index, value = int(index), float(value)
            if not (0 <= index < 2**32 and abs(value) < LARGEST):
                raise ValueError
            if value:
                found[index] = max(value, found.get(index, value))
    except (TypeError, ValueError, KeyError, OverflowError):
        raise backend.odd("a sparse vector of its makes no sense") from None
    indices = sorted(found)
    return indices, [found[index] for index in indices]


def _floats(backend, vector):
    """The list of numbers, or Refused 502 where one is none, or none that can be kept. JSON's null tells NaN."""
    if isinstance(vector, list) and vector and isinstance(vector[0], list):
        vector = vector[0]
    try:
        # The length tells of all at once: it is no number, or endless, if one of them is.
        if not isinstance(vector, list) or not math.hypot(*vector) < LARGEST:
            raise TypeError
    except (TypeError, OverflowError):
        raise backend.odd("a vector of its holds something else than numbers") from None
    return vector


def _list(backend, said):
    if not isinstance(said, list):
        raise backend.odd("its answer has another shape than its kind gives")
    return said


def _ordered(backend, rows, count):
    """OpenAI's data rows by their index."""
    rows = [row for row in _list(backend, rows) if isinstance(row, dict)]
    if sorted(row.get("index", n) for n, row in enumerate(rows) if _is(row.get("index", n), int)) != list(range(count)):
        raise backend.odd(f"it did not answer each of {count} texts once")
    return sorted(rows, key=lambda row: row.get("index", 0))


def _cards(said):
    data = said.get("data") if isinstance(said, dict) else None
    return [card for card in data if isinstance(card, dict) and "id" in card] if isinstance(data, list) else []


def _usage(said):
    usage = said.get("usage") if isinstance(said, dict) else None
    total = (usage.get("total_tokens") or usage.get("prompt_tokens")) if isinstance(usage, dict) else None
    return total if _is(total, int) else None


def _header(headers, name):
    text = headers.get(name, "")
    return int(text) if text.isdigit() else None


def _is(value, kind):
    return isinstance(value, kind) and not isinstance(value, bool)


def _json(answer):
    """The answer's JSON, None where it is none."""
    try:
        return json.loads(answer.data)
    except (ValueError, RecursionError):
        return None


def _message(answer):
    """The sentence in an error answer, one line, at most 300 characters."""
    said = _json(answer)
    if not isinstance(said, dict):
        return ""
    inner = said.get("error", said.get("message", said.get("detail", "")))
    if isinstance(inner, dict):
        inner = inner.get("message", "")
    return " ".join(str(inner).split())[:300]
