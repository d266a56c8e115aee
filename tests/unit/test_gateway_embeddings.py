"""/v1/embeddings, /v1/embeddings/sparse and /v1/rerank in front of each kind of embedding server."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
import struct
import urllib.request

import pytest

from tests.embedders import inventory, serving
from webui.app import create_app
from webui.gateway import dialects
from webui.gateway.errors import Refused

DIALECTS = {"vllm": "vLLM", "infinity": "Infinity", "flag": "FlagEmbedding", "tei": "TEI"}
TEXTS = ["the cat sleeps on the mat", "a stock market report", "cats sleep on mats all day"]


@pytest.fixture(scope="module")
def servers():
    """{name: port} of one server of each kind; each takes 20 words and 4 texts."""
    names = ["tei:embed", "tei:sparse", "tei:rerank", "vllm:all", "infinity:all", "flag:all", "openai:all"]
    with serving(*names, max_tokens=20, batch=4) as ports:
        yield dict(zip(names, ports, strict=True))


def app_with(folder, **ports):
    return create_app({"STATE_DIR": folder / "state", "INVENTORY": str(inventory(folder / "hosts.yml", **ports))})


@pytest.fixture(params=["tei", "vllm", "infinity", "flag"])
def kind(request):
    return request.param


@pytest.fixture
def client(kind, servers, tmp_path):
    """A client of an app in front of that kind of server; TEI has a server for each task."""
    if kind == "tei":
        return tei(servers, tmp_path)
    return app_with(tmp_path, embeddings=servers[f"{kind}:all"]).test_client()


@pytest.fixture
def tei_client(servers, tmp_path):
    return tei(servers, tmp_path)


def tei(servers, folder):
    ports = {"embeddings": servers["tei:embed"], "sparse": servers["tei:sparse"], "rerank": servers["tei:rerank"]}
    return app_with(folder, **ports).test_client()


def asked(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/requests") as answer:
        return json.load(answer)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


# --- embeddings


def test_embeddings_have_openais_shape_and_the_texts_order(client):
    answer = client.post("/v1/embeddings", json={"input": TEXTS, "model": "default"})
    assert answer.status_code == 200, answer.json
    body = answer.json
    assert body["object"] == "list"
    assert [row["index"] for row in body["data"]] == [0, 1, 2]
    first, other, near = (row["embedding"] for row in body["data"])
    assert cosine(first, near) > cosine(first, other) + 0.2
    assert set(body["usage"]) == {"prompt_tokens", "total_tokens"}
    assert "truncated" not in body


def test_base64_holds_the_same_numbers(client):
    plain = client.post("/v1/embeddings", json={"input": "one text"}).json["data"][0]["embedding"]
    packed = client.post("/v1/embeddings", json={"input": "one text", "encoding_format": "base64"}).json
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == pytest.approx(plain, abs=1e-6)


def test_a_batch_larger_than_the_servers_is_split_and_keeps_its_order(client):
    texts = [f"text number {n} of many" for n in range(23)]
    whole = client.post("/v1/embeddings", json={"input": texts}).json["data"]
    for number in (0, 4, 11, 22):
        alone = client.post("/v1/embeddings", json={"input": texts[number]}).json["data"][0]["embedding"]
        assert whole[number]["embedding"] == pytest.approx(alone)


def test_the_dialect_is_asked_for_once_and_the_models_name_after_each_call(servers, tmp_path):
    port = servers["openai:all"]
    client = app_with(tmp_path, embeddings=port).test_client()
    before = asked(port)
    for _ in range(3):
        assert client.post("/v1/embeddings", json={"input": "hello"}).status_code == 200
    after = asked(port)
    more = {path: after[path] - before.get(path, 0) for path in ("/info", "/openapi.json", "/v1/embeddings")}
    assert more == {"/info": 1, "/openapi.json": 1, "/v1/embeddings": 3}
    assert after["/v1/models"] - before.get("/v1/models", 0) == 1 + 1 + 3  # as Infinity tells its models there, too


@pytest.mark.parametrize("kind", ["tei:embed", "vllm:all", "infinity:all", "flag:all", "openai:all"])
def test_a_model_that_was_exchanged_at_the_address_is_what_answers_at_once(kind, tmp_path):
    """Whatever the first request after the exchange asks for."""
    with serving(kind, model="org/model-0") as [port]:
        client = app_with(tmp_path, embeddings=port).test_client()
        assert client.post("/v1/embeddings", json={"input": "hello"}).json["model"] == "org/model-0"
    for number, (wish, status) in enumerate((("default", 200), ("new", 200), ("old", 404)), 1):
        old, new = f"org/model-{number - 1}", f"org/model-{number}"
        with serving(f"{kind}:{port}", model=new):
            asked = {"input": "hello", "model": {"new": new, "old": old}.get(wish, wish)}
            answer = client.post("/v1/embeddings", json=asked)
            assert answer.status_code == status, answer.json
            assert new in answer.text
            assert old not in answer.text or status == 404


def test_a_call_during_which_the_model_changes_is_answered_by_one_model():
    """The first of two batches is answered by model a; by the time of the second, b is there."""
    seen = []

    def call(method, path, *_, **__):
        seen.append(path)
        model = "a" if seen.count("/embed") < 2 else "b"
        if path == "/info":
            return Said(INFO | {"model_id": model, "max_client_batch_size": 1})
        return Said([[1.0] if model == "a" else [2.0]])

    found = dialects.Backend(call, "it", parallel=1).embed(["one", "two"])
    assert (found.model, found.vectors) == ("b", [[2.0], [2.0]])


def test_a_model_that_never_stays_is_a_503():
    names = iter(range(1000))

    def call(method, path, *_, **__):
        return Said(INFO | {"model_id": f"model-{next(names)}"}) if path == "/info" else Said([[1.0]])

    with pytest.raises(Refused) as refused:
        dialects.Backend(call, "it").embed(["one"])
    assert (refused.value.status, refused.value.retry_after) == (503, 5)


def test_a_full_queue_does_not_hide_which_model_is_there(servers, tmp_path):
    app = app_with(tmp_path, embeddings=servers["tei:embed"])
    gateway, backend = app.extensions["gateway"], app.extensions["embedders"].backend("embed")
    with app.app_context(), contextlib.ExitStack() as places:
        service = gateway.service("embeddings")
        for _ in range(service.cap):
            places.enter_context(gateway.place(service))
        with pytest.raises(Refused) as refused:
            backend.embed(["hello"])
        assert refused.value.status == 429
        assert backend.current().model == "demo/embedder"


def test_another_kind_of_server_at_the_address_does_what_it_can_at_once(tmp_path):
    with serving("vllm:all") as [port]:
        client = app_with(tmp_path, embeddings=port).test_client()
        assert client.post("/v1/rerank", json={"query": "cat", "documents": TEXTS}).status_code == 200
    with serving(f"tei:embed:{port}"):
        answer = client.post("/v1/rerank", json={"query": "cat", "documents": TEXTS})
        assert (answer.status_code, answer.json["error"]["code"]) == (404, "service_not_configured")
    with serving(f"flag:all:{port}"):
        assert client.post("/v1/rerank", json={"query": "cat", "documents": TEXTS}).status_code == 200


def test_another_server_at_the_address_is_found_out_after_a_failure(tmp_path):
    with serving("tei:embed") as [port]:
        client = app_with(tmp_path, embeddings=port).test_client()
        assert client.post("/v1/embeddings", json={"input": "hello"}).json["model"] == "demo/embedder"
    down = client.post("/v1/embeddings", json={"input": "hello"})
    assert down.status_code == 503
    assert "Retry-After" in down.headers or "does not" in down.json["error"]["message"]
    with serving(f"vllm:all:{port}"):
        answer = client.post("/v1/embeddings", json={"input": "hello"})
        assert (answer.status_code, answer.json.get("model")) == (200, "demo/m3"), answer.json


def test_dimensions_are_passed_on_or_refused(kind, client):
    answer = client.post("/v1/embeddings", json={"input": "hello", "dimensions": 64})
    if kind == "flag":  # it has no such option, so that its answer is another length
        assert answer.status_code == 400
        assert answer.json["error"]["param"] == "dimensions"
    else:
        assert len(answer.json["data"][0]["embedding"]) == 64


LONG = " ".join(f"word{n}" for n in range(60))


def test_what_is_too_long_is_refused_or_cut_and_told_never_silently(kind, client):
    texts = ["short", LONG, "short too", "and short", "another", LONG]
    answer = client.post("/v1/embeddings", json={"input": texts})
    if kind in ("tei", "vllm"):
        assert answer.status_code == 400
        assert answer.json["error"]["code"] == "context_length_exceeded"
        assert "input 1" in answer.json["error"]["message"]
        assert "20 tokens" in answer.json["error"]["message"]
        cut = client.post("/v1/embeddings", json={"input": texts, "truncate": True})
        assert cut.json["truncated"] == [1, 5]
        assert cut.headers["X-Truncated"] == "1,5"
    else:  # these cut and do not tell: a text that may have been is named
        assert answer.status_code == 200
        longer = " ".join([LONG] * 3)
        told = client.post("/v1/embeddings", json={"input": ["short", longer]})
        assert told.json["truncation_unknown"] == [1]
        assert told.headers["X-Truncation-Unknown"] == "1"


def test_an_unknown_model_gets_a_404_that_lists_what_is_there(tei_client):
    answer = tei_client.post("/v1/embeddings", json={"input": "hello", "model": "text-embedding-3-small"})
    assert answer.status_code == 404
    assert answer.json["error"]["code"] == "model_not_found"
    assert "demo/embedder" in answer.json["error"]["message"]
    for name in ("demo/embedder", "embedder", "default"):
        assert tei_client.post("/v1/embeddings", json={"input": "hello", "model": name}).status_code == 200


def test_token_ids_go_to_vllm_and_are_refused_elsewhere_in_plain_words(servers, tmp_path, tei_client):
    answer = tei_client.post("/v1/embeddings", json={"input": [[1, 2, 3]]})
    assert answer.status_code == 400
    assert "check_embedding_ctx_length" in answer.json["error"]["message"]
    vllm = app_with(tmp_path, embeddings=servers["vllm:all"]).test_client()
    assert len(vllm.post("/v1/embeddings", json={"input": [1, 2, 3]}).json["data"]) == 1
    assert len(vllm.post("/v1/embeddings", json={"input": [[1, 2], [3]]}).json["data"]) == 2


def test_a_plain_openai_server_gives_embeddings_and_nothing_else(servers, tmp_path):
    client = app_with(tmp_path, embeddings=servers["openai:all"]).test_client()
    assert client.post("/v1/embeddings", json={"input": TEXTS}).status_code == 200
    assert client.post("/v1/rerank", json={"query": "cat", "documents": TEXTS}).status_code == 404


# --- sparse


def test_sparse_vectors_have_unique_ascending_indices(kind, client):
    if kind == "infinity":
        assert client.post("/v1/embeddings/sparse", json={"input": TEXTS}).status_code == 404  # it has none
        return
    answer = client.post("/v1/embeddings/sparse", json={"input": [*TEXTS, "cat cat cat"]})
    assert answer.status_code == 200, answer.json
    rows = answer.json["data"]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert row["indices"] == sorted(set(row["indices"]))
        assert len(row["indices"]) == len(row["values"]) > 0
    assert set(rows[3]["indices"]) < set(rows[0]["indices"])


def test_sparse_is_404_with_a_reason_where_no_server_does_it(servers, tmp_path):
    client = app_with(tmp_path, embeddings=servers["tei:embed"]).test_client()
    answer = client.post("/v1/embeddings/sparse", json={"input": "hello"})
    assert answer.status_code == 404
    assert "TEI" in answer.json["error"]["message"]
    assert "group sparse" in answer.json["error"]["message"]


SHAPES = [
    [{"index": 5, "value": 0.5}, {"index": 2, "value": 1.0}, {"index": 5, "value": 0.25}],
    [{"token_id": 5, "weight": 0.5}, {"token_id": 2, "weight": 1.0}, {"token_id": 5, "weight": 0.1, "token": None}],
    {"5": 0.5, "2": 1.0, "9": 0.0},
    {"indices": [5, 2, 5], "values": [0.5, 1.0, 0.4]},
]


@pytest.mark.parametrize("shape", SHAPES, ids=["tei", "vllm", "flagembedding", "qdrant"])
def test_every_sparse_shape_folds_into_one(shape):
    assert dialects.folded(dialects.Backend(None, "it"), shape) == ([2, 5], [1.0, 0.5])


@pytest.mark.parametrize("shape", [None, 3, [1], [{"index": -1, "value": 1}], {"a": 1}, [{"index": 1, "value": None}]])
def test_a_sparse_vector_that_makes_no_sense_is_the_servers_fault(shape):
    with pytest.raises(Refused) as refused:
        dialects.folded(dialects.Backend(None, "it"), shape)
    assert refused.value.status == 502


# --- rerank


def test_rerank_answers_in_coheres_shape(client):
    body = {"model": "default", "query": "where does the cat sleep", "documents": TEXTS, "top_n": 2}
    answer = client.post("/v1/rerank", json=body)
    assert answer.status_code == 200, answer.json
    rows = answer.json["results"]
    assert len(rows) == 2
    assert rows[0]["index"] == 0
    assert rows[0]["relevance_score"] >= rows[1]["relevance_score"]
    assert "document" not in rows[0]
    with_text = client.post(
        "/v2/rerank", json=body | {"documents": [{"text": t} for t in TEXTS], "return_documents": True}
    )
    assert with_text.json["results"][0]["document"] == {"text": TEXTS[0]}


def test_rerank_answers_in_teis_shape(client):
    answer = client.post("/v1/rerank", json={"query": "where does the cat sleep", "texts": TEXTS, "return_text": True})
    rows = answer.json
    assert [set(row) for row in rows] == [{"index", "score", "text"}] * 3
    assert rows[0]["text"] == TEXTS[0]
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)


def test_rerank_splits_a_batch_and_knows_each_text_by_its_position(client):
    texts = [f"nothing {n}" for n in range(30)]
    texts[17] = "the needle itself"
    rows = client.post("/v1/rerank", json={"query": "the needle itself", "documents": texts}).json["results"]
    assert rows[0]["index"] == 17
    assert sorted(row["index"] for row in rows) == list(range(30))


@pytest.mark.parametrize("raw", [False, True])
def test_a_document_without_a_word_comes_last_and_fails_nothing(client, raw):
    documents = ["", "a dog", " \n", "a cat", {"text": ""}]
    answer = client.post("/v1/rerank", json={"query": "cat", "documents": documents, "raw_scores": raw})
    assert answer.status_code == 200, answer.json
    rows = answer.json["results"]
    assert [row["index"] for row in rows] == [3, 1, 0, 2, 4]
    assert rows[1]["relevance_score"] > rows[2]["relevance_score"] == rows[4]["relevance_score"]
    assert raw or rows[4]["relevance_score"] == 0
    theirs = client.post("/v1/rerank", json={"query": "cat", "texts": ["", "a cat"]})
    assert [row["index"] for row in theirs.json] == [1, 0]
    nothing = client.post("/v1/rerank", json={"query": "cat", "documents": ["", " "]})
    assert [row["relevance_score"] for row in nothing.json["results"]] == [0, 0]


def test_the_places_of_what_was_cut_count_documents_without_a_word(tei_client):
    body = tei_client.post("/v1/rerank", json={"query": "word1", "documents": ["", LONG, "", "x"]}).json
    assert body["truncated"] == [1]
    refused = tei_client.post("/v1/rerank", json={"query": "word1", "texts": ["", "", LONG]})
    assert "input 2." in refused.json["error"]["message"]


def test_coheres_long_documents_are_cut_and_told_and_teis_are_refused(tei_client):
    body = tei_client.post("/v1/rerank", json={"query": "word1", "documents": ["x", LONG]}).json
    assert body["truncated"] == [1]
    refused = tei_client.post("/v1/rerank", json={"query": "word1", "texts": ["x", LONG]})
    assert (refused.status_code, refused.json["error"]["code"]) == (400, "context_length_exceeded")


# --- bad input, absent and down


BAD = [
    ("/v1/embeddings", {}),
    ("/v1/embeddings", {"input": ""}),
    ("/v1/embeddings", {"input": []}),
    ("/v1/embeddings", {"input": [""]}),
    ("/v1/embeddings", {"input": 5}),
    ("/v1/embeddings", {"input": ["a", 5]}),
    ("/v1/embeddings", {"input": [[]]}),
    ("/v1/embeddings", {"input": {"a": 1}}),
    ("/v1/embeddings", {"input": ["a"] * 2049}),
    ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}),
    ("/v1/embeddings", {"input": "a", "encoding_format": 1}),
    ("/v1/embeddings", {"input": "a", "dimensions": -1}),
    ("/v1/embeddings", {"input": "a", "dimensions": True}),
    ("/v1/embeddings", {"input": "a", "model": ["x"]}),
    ("/v1/embeddings", {"input": "\ud800"}),
    ("/v1/embeddings/sparse", {"input": [[1, 2]]}),
    ("/v1/rerank", {"query": "a"}),
    ("/v1/rerank", {"query": "", "documents": ["a"]}),
    ("/v1/rerank", {"query": "a", "documents": []}),
    ("/v1/rerank", {"query": "a", "documents": "a"}),
    ("/v1/rerank", {"query": "a", "documents": [{"no": "text"}]}),
    ("/v1/rerank", {"query": "a", "documents": ["a"], "texts": ["a"]}),
    ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": 0}),
]


@pytest.mark.parametrize(("path", "body"), BAD)
def test_bad_input_is_a_400_in_openais_shape(tei_client, path, body):
    answer = tei_client.post(path, data=json.dumps(body), content_type="application/json")
    assert answer.status_code == 400, answer.json
    assert set(answer.json["error"]) >= {"message", "type", "param", "code"}


@pytest.mark.parametrize("data", [b"{", b"", b"[1]", b"\xff\xfe", b'{"input": NaN' + b"[" * 50, b"[" * 100_000])
def test_broken_json_is_a_400(tei_client, data):
    answer = tei_client.post("/v1/embeddings", data=data, content_type="application/json")
    assert answer.status_code == 400
    assert answer.json["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b'{"input": "x", "dimensions": NaN}', "dimensions"),
        (b'{"input": [[1, 2], [-Infinity]]}', "input[1][0]"),
        (b'{"input": [[1' + b"0" * 5000 + b"]]}", "input[0][0]"),
    ],
)
def test_a_number_that_json_has_not_is_told_by_its_field(tei_client, data, field):
    answer = tei_client.post("/v1/embeddings", data=data, content_type="application/json")
    assert (answer.status_code, answer.json["error"]["param"]) == (400, field)
    assert "is no number in JSON" in answer.json["error"]["message"]


def test_the_wrong_content_type_and_too_much_are_told(tei_client):
    assert tei_client.post("/v1/embeddings", data={"input": "x"}).status_code == 415
    huge = tei_client.post("/v1/embeddings", data=b"x" * (33 << 20), content_type="application/json")
    assert huge.status_code == 413
    assert "32 MB" in huge.json["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/embeddings/sparse", "/v1/rerank"])
def test_absent_is_404_and_down_is_503_naming_it(tmp_path, path):
    body = {"input": "x"} if "emb" in path else {"query": "x", "documents": ["y"]}
    absent = app_with(tmp_path).test_client().post(path, json=body)
    assert absent.status_code == 404
    assert re.search(r"group \w+ has no host", absent.json["error"]["message"])
    with serving("tei:embed") as [port]:
        pass
    down = app_with(tmp_path, embeddings=port).test_client().post(path, json=body)
    assert down.status_code == 503
    assert "embedding server on spark1" in down.json["error"]["message"]


# --- a server that answers nonsense


class Said:
    """An answer as a Backend's call gives it."""

    def __init__(self, body, status=200):
        self.status, self.headers = status, {}
        self.data = body if isinstance(body, bytes) else json.dumps(body).encode()


HUGE = b"[[1e999], [1]]"
NAN, THREE = b"[[NaN], [1]]", [[1.0], [1.0], [1.0]]
INFO = {"model_id": "m", "model_type": {"embedding": {"pooling": "cls"}}, "max_client_batch_size": 8}


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"",
        {},
        [],
        [[1.0]],
        [[1.0], "x"],
        [[1.0], [None]],
        NAN,
        HUGE,
        [[1e300], [1]],
        [[1.0], [1.0, 2.0]],
        [[], []],
        None,
        THREE,
    ],
)
def test_nonsense_from_the_server_is_a_502(body):
    backend = dialects.Backend(lambda method, path, *_, **__: Said(INFO if path == "/info" else body), "it")
    with pytest.raises(Refused) as refused:
        backend.embed(["a", "b"])
    assert refused.value.status == 502


@pytest.mark.parametrize(
    ("status", "expected"), [(500, 502), (424, 502), (404, 502), (503, 503), (413, 400), (422, 400), (401, 502)]
)
def test_the_servers_refusals_are_passed_on_in_words(status, expected):
    def call(method, path, *_, **__):
        return Said(INFO) if path == "/info" else Said({"error": "because of this"}, status)

    with pytest.raises(Refused) as refused:
        dialects.Backend(call, "it").embed(["a"])
    assert refused.value.status == expected
    assert status in (401, 404) or "because of this" in refused.value.message


def test_a_busy_server_is_asked_again(monkeypatch):
    monkeypatch.setattr(dialects, "BUSY_WAITS", (0, 0))
    answers = iter([Said({"error": "Model is overloaded"}, 429), Said([[1.0, 2.0]])])
    backend = dialects.Backend(lambda method, path, *_, **__: Said(INFO) if path == "/info" else next(answers), "it")
    assert backend.embed(["a"]).vectors == [[1.0, 2.0]]


def test_what_is_no_embedding_server_is_said_so():
    backend = dialects.Backend(lambda *_, **__: Said({"hello": "world"}), "it")
    with pytest.raises(Refused, match="as no embedding server known here"):
        backend.embed(["a"])


@pytest.mark.parametrize(
    ("info", "task"),
    [
        ({"model_id": "m", "model_type": {"reranker": {"id2label": {}}}}, "rerank"),
        ({"model_id": "m", "model_type": {"embedding": {"pooling": "splade"}}}, "sparse"),
        ({"model_id": "m", "model_type": {"embedding": {"pooling": "mean"}}}, "embed"),
    ],
)
def test_teis_info_tells_its_task(info, task):
    assert dialects.tei(info).tasks == {task}
