"""/api/collections: documents in, search over them, on the embedded store and on Qdrant's own client."""

from __future__ import annotations

import http.server
import json
import os
import signal
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.embedders import inventory, qdrant, serving
from tests.support import wait_for
from webui.app import create_app
from webui.gateway import chunks, fusion, store

DOCUMENTS = [
    {
        "id": "cats",
        "text": "Cats sleep on the mat all day and hunt mice at night.",
        "metadata": {"lang": "en", "year": 2020},
    },
    {
        "id": "stocks",
        "text": "The stock market fell by two percent on Monday.",
        "metadata": {"lang": "en", "year": 2024},
    },
    {
        "id": "katzen",
        "text": "Katzen schlafen auf der Matte.",
        "metadata": {"lang": "de", "year": 2024, "tags": ["a", "b"]},
    },
    {
        "id": "part-ZX81",
        "text": "Order number ZX81-77 for the blue valve.",
        "metadata": {"when": "2026-01-05T10:00:00Z"},
    },
]


@pytest.fixture(scope="module")
def ports():
    with serving("tei:embed", "tei:sparse", "tei:rerank", dimensions=64) as found:
        yield dict(zip(("embeddings", "sparse", "rerank"), found, strict=True))


@pytest.fixture(scope="module")
def server_port():
    with qdrant() as port:
        yield port


@pytest.fixture(params=["embedded", "server"])
def kind(request):
    return request.param


@pytest.fixture
def app(kind, ports, server_port, tmp_path):
    """An app with an embedding server and a reranker; its store is the embedded one, or a Qdrant server over HTTP."""
    services = {"embeddings": ports["embeddings"], "rerank": ports["rerank"]}
    if kind == "server":
        services["qdrant"] = server_port
    made = made_app(tmp_path, **services)
    shelf = made.extensions["search"].store()
    yield made
    for item in shelf.collections():
        shelf.delete(item["name"])
    shelf.close()


@pytest.fixture
def embedded(ports, tmp_path):
    made = made_app(tmp_path, embeddings=ports["embeddings"])
    yield made
    made.extensions["search"].close()


def made_app(folder, **ports):
    return create_app({"STATE_DIR": folder / "state", "INVENTORY": str(inventory(folder / "hosts.yml", **ports))})


@pytest.fixture
def client(app):
    """With a collection `notes` that holds DOCUMENTS."""
    client = app.test_client()
    assert client.post("/api/collections", json={"name": "notes"}).status_code == 201
    assert client.put("/api/collections/notes/documents", json={"documents": DOCUMENTS}).status_code == 200
    return client


def search(client, query, **more):
    answer = client.post("/api/collections/notes/search", json={"query": query, **more})
    assert answer.status_code == 200, answer.json
    return answer.json


def found(client, query, **more):
    return [hit["document"] for hit in search(client, query, **more)["hits"]]


# --- collections


def test_a_collection_is_made_listed_and_deleted_only_when_confirmed(client):
    listed = client.get("/api/collections").json["collections"]
    expected = {"name": "notes", "points": 4, "dimensions": 64, "distance": "cosine", "sparse": "bm25"}
    assert [{key: item[key] for key in expected} for item in listed] == [expected]
    assert listed[0]["model"] == "demo/embedder"
    asked = client.delete("/api/collections/notes")
    assert asked.status_code == 422
    assert asked.json["errors"][0]["field"] == "confirm"
    assert client.delete("/api/collections/notes?confirm=other").status_code == 422
    assert client.delete("/api/collections/notes?confirm=notes").json == {"deleted": "notes", "points": 4}
    assert client.get("/api/collections").json["collections"] == []
    assert client.get("/api/collections/notes").status_code == 404


def test_making_it_twice_is_a_conflict_by_post_and_nothing_by_put(client):
    assert client.post("/api/collections", json={"name": "notes"}).status_code == 409
    assert client.put("/api/collections/notes", json={}).status_code == 200
    assert client.put("/api/collections/notes", json={"dimensions": 64, "sparse": "bm25"}).status_code == 200
    other = client.put("/api/collections/notes", json={"dimensions": 32})
    assert other.status_code == 409
    assert "dimensions" in other.json["detail"]
    assert client.put("/api/collections/new", json={"distance": "dot", "sparse": "none"}).status_code == 201


def test_a_collection_may_have_fewer_dimensions_if_the_model_can(app):
    client = app.test_client()
    made = client.post("/api/collections", json={"name": "notes", "dimensions": 16})
    assert made.json["dimensions"] == 16
    assert client.put("/api/collections/notes/documents", json={"documents": DOCUMENTS}).json["added"] == 4
    assert found(client, "the stock market", mode="dense")[0] == "stocks"
    assert client.post("/api/collections", json={"name": "more", "dimensions": 9999}).status_code == 400


def test_sparse_vectors_come_from_the_model_where_one_gives_them(ports, tmp_path):
    app = made_app(tmp_path, embeddings=ports["embeddings"], sparse=ports["sparse"])
    client = app.test_client()
    assert client.post("/api/collections", json={"name": "notes"}).json["sparse"] == "model"
    client.put("/api/collections/notes/documents", json={"documents": DOCUMENTS})
    assert found(client, "ZX81", mode="sparse") == ["part-ZX81"]
    app.extensions["search"].close()


# --- documents


def test_the_second_put_changes_nothing(client):
    again = client.put("/api/collections/notes/documents", json={"documents": DOCUMENTS}).json
    assert again == {"documents": 4, "added": 0, "unchanged": 4, "updated": 0, "removed": 0, "truncated": []}


def test_a_changed_document_leaves_no_stale_chunk(client):
    long = " ".join(f"Sentence number {n} about whales." for n in range(100))
    first = client.put(
        "/api/collections/notes/documents",
        json={"documents": [{"id": "whales", "text": long}], "chunk": {"size": 300, "overlap": 30}},
    ).json
    assert first["added"] > 9
    shorter = client.put(
        "/api/collections/notes/documents",
        json={"documents": [{"id": "whales", "text": "Only one sentence about whales."}]},
    ).json
    assert (shorter["added"], shorter["removed"]) == (1, first["added"])
    assert client.get("/api/collections/notes").json["points"] == 5
    assert found(client, "whales", limit=50).count("whales") == 1


def test_new_metadata_is_written_without_new_vectors(client, app, monkeypatch):
    monkeypatch.setattr(app.extensions["search"], "vectors", None)  # not called
    changed = [DOCUMENTS[0] | {"metadata": {"lang": "fr"}}]
    told = client.put("/api/collections/notes/documents", json={"documents": changed}).json
    assert (told["updated"], told["added"], told["removed"]) == (1, 0, 0)


def test_a_document_without_an_id_gets_one_of_its_content(client):
    document = {"documents": [{"text": "No name."}]}
    assert client.put("/api/collections/notes/documents", json=document).json["added"] == 1
    assert client.put("/api/collections/notes/documents", json=document).json["unchanged"] == 1


def test_a_document_is_taken_out_with_all_its_chunks(client):
    assert client.delete("/api/collections/notes/documents/cats").json == {"document": "cats", "removed": 1}
    assert client.delete("/api/collections/notes/documents/cats").status_code == 404
    assert "cats" not in found(client, "cats sleep")


def test_chunks_that_the_model_does_not_take_whole_are_told(ports, tmp_path):
    with serving("tei:embed", max_tokens=20) as [port]:
        app = made_app(tmp_path, embeddings=port)
        client = app.test_client()
        client.post("/api/collections", json={"name": "notes"})
        text = " ".join(f"word{n}" for n in range(60))
        told = client.put("/api/collections/notes/documents", json={"documents": [{"id": "a", "text": text}]}).json
        assert told["truncated"] == [{"document": "a", "chunk": 0}]
        app.extensions["search"].close()


# --- search


def test_hybrid_search_finds_by_meaning_and_by_word(client):
    body = search(client, "sleeping cats")
    assert body["mode"] == "hybrid"
    hit = body["hits"][0]
    assert hit["document"] == "cats"
    assert hit["metadata"] == {"lang": "en", "year": 2020}
    assert set(hit["ranks"]) == {"dense", "sparse"}
    assert hit["score"] == pytest.approx(sum(1 / (60 + rank["rank"]) for rank in hit["ranks"].values()))
    assert found(client, "ZX81-77")[0] == "part-ZX81"


def test_dense_and_sparse_alone(client):
    assert found(client, "the stock market fell", mode="dense")[0] == "stocks"
    assert len(found(client, "the stock market fell", mode="dense")) == 4
    assert found(client, "valve", mode="sparse") == ["part-ZX81"]
    assert found(client, "xyzzy", mode="sparse") == []


def test_weights_k_and_dbsf_change_the_order_as_they_say(client):
    query = "cats valve"
    only_sparse = found(client, query, weights={"dense": 0, "sparse": 1})
    assert set(only_sparse[:2]) == {"cats", "part-ZX81"}
    one = search(client, query, k=1)["hits"][0]
    assert one["score"] == pytest.approx(sum(1 / (1 + rank["rank"]) for rank in one["ranks"].values()))
    spread = search(client, query, fusion="dbsf")["hits"]
    assert all(0 <= hit["score"] <= 2 for hit in spread)


FILTERS = [
    ({"must": [{"key": "lang", "match": {"value": "de"}}]}, {"katzen"}),
    ({"must": [{"key": "year", "range": {"gte": 2024}}]}, {"katzen", "stocks"}),
    ({"must_not": [{"key": "lang", "match": {"any": ["de", "en"]}}]}, {"part-ZX81"}),
    ({"must": [{"key": "tags", "match": {"value": "b"}}]}, {"katzen"}),
    ({"must": [{"is_empty": {"key": "lang"}}]}, {"part-ZX81"}),
    ({"must": [{"key": "when", "range": {"gt": "2026-01-01T00:00:00Z"}}]}, {"part-ZX81"}),
    ({"must": [{"key": "document", "match": {"except": ["cats"]}}]}, {"katzen", "stocks", "part-ZX81"}),
    ({"should": [{"key": "year", "match": {"value": 2020}}, {"must": [{"key": "lang", "match": {"value": "de"}}]}]},
     {"cats", "katzen"}),
]  # fmt: skip


def test_a_filter_finds_the_same_where_a_fields_values_are_of_several_types(client):
    values = ["x", 5, True, 2.5, ["x", 5], "2026-01-01T00:00:00Z", None, 7]
    documents = [{"id": f"v{n}", "text": f"value {n}", "metadata": {"a": value}} for n, value in enumerate(values)]
    client.put("/api/collections/notes/documents", json={"documents": documents})
    expected = [
        ({"match": {"value": 5}}, {"v1", "v4"}),
        ({"match": {"value": "x"}}, {"v0", "v4"}),
        ({"match": {"value": True}}, {"v2"}),
        ({"match": {"value": False}}, set()),
        ({"range": {"gte": 2}}, {"v1", "v3", "v4", "v7"}),
        ({"match": {"any": ["x", "y"]}}, {"v0", "v4"}),
        ({"match": {"any": [5, 7]}}, {"v1", "v4", "v7"}),
        ({"match": {"except": ["x"]}}, {"v1", "v2", "v3", "v5", "v7"}),
    ]
    for _ in range(2):  # the first search of a kind makes an index, the second one uses it
        for condition, documents in expected:
            asked = {"must": [{"key": "a", **condition}]}
            assert set(found(client, "value", mode="dense", limit=20, filter=asked)) == documents, condition


@pytest.mark.parametrize(("condition", "expected"), FILTERS)
def test_filters_look_into_the_metadata(client, condition, expected):
    for mode in ("dense", "hybrid"):
        assert set(found(client, "anything at all", mode=mode, filter=condition)) == expected


def test_a_reranker_orders_the_candidates_again(client):
    body = search(client, "two percent on Monday", rerank=True, limit=2)
    assert body["reranked"] is True
    assert len(body["hits"]) == 2
    assert body["hits"][0]["document"] == "stocks"
    assert set(body["hits"][0]) >= {"score", "fused_score"}


def test_a_snippet_shows_the_querys_words(client):
    text = "Nothing here. " * 50 + "The whale swims far. " + "Nothing there. " * 50
    documents = [{"id": "w", "text": text}]
    client.put("/api/collections/notes/documents", json={"documents": documents, "chunk": {"size": 5000, "overlap": 0}})
    snippet = search(client, "WHALE swims", mode="sparse", snippet=80)["hits"][0]["snippet"]
    assert len(snippet["text"]) <= 84
    assert [snippet["text"][a:b] for a, b in snippet["highlights"]] == ["whale", "swims"]
    assert "snippet" not in search(client, "whale", snippet=0)["hits"][0]


def test_a_vector_of_ones_own_is_searched_with(client):
    assert len(found(client, "x", mode="dense", vector=[0.1] * 64)) == 4
    wrong = client.post("/api/collections/notes/search", json={"query": "x", "vector": [0.1] * 63})
    assert wrong.status_code == 422
    assert "64 numbers" in wrong.json["detail"]


def test_another_model_of_the_same_size_is_refused_not_searched_with(kind, client, app, server_port, tmp_path):
    with serving("tei:embed", model="demo/other", dimensions=64) as [port]:
        inventory(tmp_path / "hosts.yml", embeddings=port, **({"qdrant": server_port} if kind == "server" else {}))
        app.extensions["gateway"].cluster._inventory_checked = 0
        answer = client.post("/api/collections/notes/search", json={"query": "cats"})
        assert answer.status_code == 409, answer.json
        assert "demo/other" in answer.json["detail"]
        put = client.put("/api/collections/notes/documents", json={"documents": [{"text": "new"}]})
        assert put.status_code == 409
    assert found(client, "cats", mode="sparse") == ["cats"]  # words need no model


# --- bad input

NAMES = ["..", ".", "a b", "a.b", "%2e%2e", "a%2Fb", "..%2f..%2fetc", "x" * 65, "a%00", "ä", "a;b", "-%0a"]


@pytest.mark.parametrize("name", NAMES)
def test_tricks_in_a_collections_name_are_refused(client, name):
    for method, path in (
        ("get", ""),
        ("put", ""),
        ("delete", "?confirm=x"),
        ("put", "/documents"),
        ("post", "/search"),
    ):
        answer = client.open(f"/api/collections/{name}{path}", method=method, json={})
        assert answer.status_code in (404, 405, 422, 308), (method, path, answer.status_code)
        assert answer.status_code == 308 or answer.is_json
    assert client.post("/api/collections", json={"name": name}).status_code == 422


BAD_DOCUMENTS = [
    {},
    {"documents": []},
    {"documents": {}},
    {"documents": ["text"]},
    {"documents": [{"text": ""}]},
    {"documents": [{"text": 5}]},
    {"documents": [{"text": "x", "id": "../../etc/passwd"}]},
    {"documents": [{"text": "x", "id": ".."}]},
    {"documents": [{"text": "x", "id": ""}]},
    {"documents": [{"text": "x", "id": 7}]},
    {"documents": [{"text": "x", "id": "a\n"}]},
    {"documents": [{"text": "x", "vector": [1]}]},
    {"documents": [{"text": "x", "metadata": []}]},
    {"documents": [{"text": "x", "metadata": {"a": "b" * 20000}}]},
    {"documents": [{"text": "x", "metadata": {"a": 10**30}}]},
    {"documents": [{"text": "\ud800"}]},
    {"documents": [{"text": "x", "id": "a"}, {"text": "y", "id": "a"}]},
    {"documents": [{"text": "x"}] * 1001},
    {"documents": [{"text": "x"}], "chunk": {"size": 5}},
    {"documents": [{"text": "x"}], "chunk": {"size": 200, "overlap": 100}},
    {"documents": [{"text": "x"}], "more": 1},
]


@pytest.mark.parametrize("body", BAD_DOCUMENTS)
def test_bad_documents_are_refused_by_name_and_nothing_is_written(client, body):
    answer = client.put("/api/collections/notes/documents", data=json.dumps(body), content_type="application/json")
    assert answer.status_code == 422, answer.json
    assert answer.json["errors"]
    assert client.get("/api/collections/notes").json["points"] == 4


BAD_SEARCHES = [
    {},
    {"query": ""},
    {"query": 5},
    {"query": "\ud800"},
    {"query": "x", "limit": 0},
    {"query": "x", "limit": 1e9},
    {"query": "x", "mode": "magic"},
    {"query": "x", "fusion": "sum"},
    {"query": "x", "weights": {"dense": -1}},
    {"query": "x", "weights": {"dense": 0, "sparse": 0}},
    {"query": "x", "weights": {"other": 1}},
    {"query": "x", "k": 0},
    {"query": "x", "vector": "abc"},
    {"query": "x", "vector": [None] * 64},
    {"query": "x", "vector": [1e39] * 64},
    {"query": "x", "filter": []},
    {"query": "x", "filter": {"must": [{"key": "a"}]}},
    {"query": "x", "filter": {"must": [{"key": "../a", "match": {"value": 1}}]}},
    {"query": "x", "filter": {"must": [{"key": "a", "match": {"value": 1.5}}]}},
    {"query": "x", "filter": {"must": [{"key": "a", "match": {"any": [1, "a"]}}]}},
    {"query": "x", "filter": {"must": [{"key": "a", "match": {"value": 10**30}}]}},
    {"query": "x", "filter": {"must": [{"key": "a", "range": {"gt": "yesterday"}}]}},
    {"query": "x", "filter": {"must": [{"key": "a", "range": {"gt": "2026-99-99"}}]}},
    {"query": "x", "filter": {"must": [{"key": "a", "range": {"gt": 1, "lt": "2026-01-01"}}]}},
    {"query": "x", "unknown": 1},
]


@pytest.mark.parametrize("body", BAD_SEARCHES)
def test_a_bad_search_is_refused(client, body):
    answer = client.post("/api/collections/notes/search", data=json.dumps(body), content_type="application/json")
    assert answer.status_code == 422, answer.json


def test_an_unknown_collection_is_a_404(client):
    assert client.get("/api/collections/none").status_code == 404
    assert client.delete("/api/collections/none?confirm=none").status_code == 404
    assert client.post("/api/collections/none/search", json={"query": "x"}).status_code == 404
    assert client.put("/api/collections/none/documents", json={"documents": [{"text": "x"}]}).status_code == 404
    assert client.delete("/api/collections/none/documents/x").status_code == 404


def test_broken_json_the_wrong_type_and_too_much(client):
    path = "/api/collections/notes/documents"
    assert client.put(path, data=b"{", content_type="application/json").status_code == 400
    assert client.put(path, data=b'{"documents": [{"text": NaN}]}', content_type="application/json").status_code == 400
    assert client.put(path, data=b"x", content_type="text/plain").status_code == 415
    huge = client.put(path, data=b"x" * (33 << 20), content_type="application/json")
    assert (huge.status_code, huge.mimetype) == (413, "application/problem+json")


def test_without_an_embedding_server_search_says_so(tmp_path):
    client = made_app(tmp_path).test_client()
    answer = client.post("/api/collections", json={"name": "notes"})
    assert answer.status_code == 404
    assert "group embeddings has no host" in answer.json["detail"]
    with serving("tei:embed") as [port]:
        pass
    inventory(tmp_path / "hosts.yml", embeddings=port)
    down = made_app(tmp_path, embeddings=port).test_client().post("/api/collections", json={"name": "notes"})
    assert down.status_code == 503


def test_what_others_made_in_the_server_is_listed_and_told(ports, server_port, tmp_path):
    from qdrant_client import QdrantClient, models

    client = made_app(tmp_path, embeddings=ports["embeddings"], qdrant=server_port).test_client()
    theirs = QdrantClient(url=f"http://127.0.0.1:{server_port}", check_compatibility=False)
    theirs.create_collection("theirs", vectors_config=models.VectorParams(size=3, distance="Cosine"))
    listed = client.get("/api/collections").json
    assert listed["store"] == "server"
    assert [(item["name"], item["foreign"]) for item in listed["collections"]] == [("theirs", True)]
    answer = client.post("/api/collections/theirs/search", json={"query": "x"})
    assert answer.status_code == 422
    assert "made by something else" in answer.json["detail"]
    assert client.delete("/api/collections/theirs?confirm=theirs").status_code == 200
    theirs.close()


def test_nothing_goes_into_the_embedded_store_while_the_inventory_cannot_tell(ports, tmp_path):
    app = made_app(tmp_path, embeddings=ports["embeddings"])
    client, hosts = app.test_client(), tmp_path / "hosts.yml"
    lines = hosts.read_text() + "    qdrant: {hosts: {nowhere: {ansible_host: no-such-host.invalid}}}\n"
    for text, told in ((lines, "nowhere, where Qdrant is, has no address"), ("all: [broken", "cannot be read")):
        hosts.write_text(text)
        app.extensions["gateway"].cluster._inventory_checked = 0
        answer = client.post("/api/collections", json={"name": "notes"})
        assert answer.status_code in (404, 503), answer.json
        answer = client.get("/api/collections")
        assert answer.status_code == 503, answer.json
        assert told in answer.json["detail"]
    assert not (tmp_path / "state/search").exists()


def test_the_metrics_count_searches(embedded):
    client = embedded.test_client()
    client.get("/api/collections")
    assert 'requests_total{endpoint="collections.collections",model="",status="200"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("said", [b"", b"hello", b"{}", b"[]", b'{"result": null}', b'{"result": {"collections": 7}}'])
def test_a_port_that_answers_and_is_no_qdrant_is_a_503(ports, tmp_path, said):
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = made_app(tmp_path, embeddings=ports["embeddings"], qdrant=server.server_port).test_client()
        answer = client.get("/api/collections")
        server.shutdown()
    assert answer.status_code == 503, answer.json


def test_a_qdrant_server_that_is_down_is_a_503(ports, tmp_path):
    client = made_app(tmp_path, embeddings=ports["embeddings"], qdrant=9).test_client()
    answer = client.get("/api/collections")
    assert answer.status_code == 503, answer.json
    assert "Qdrant on spark1 does not answer" in answer.json["detail"]


# --- the embedded store's process


def test_what_was_written_outlives_a_kill_of_the_stores_process(embedded):
    client = embedded.test_client()
    client.post("/api/collections", json={"name": "notes"})
    client.put("/api/collections/notes/documents", json={"documents": DOCUMENTS})
    process = embedded.extensions["search"].store()._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert found(client, "sleeping cats")[0] == "cats"
    assert client.get("/api/collections/notes").json["points"] == 4


def test_one_process_owns_the_folder(embedded, monkeypatch, tmp_path):
    first = embedded.extensions["search"].store()
    first.collections()
    monkeypatch.setenv("PATH", os.environ["PATH"])
    second = store.EdgeStore(first.folder)
    started = time.monotonic()
    with pytest.raises(store.Unavailable, match="Another process holds"):
        second.collections()
    assert time.monotonic() - started >= 9
    first.close()
    assert second.collections() == []
    second.close()


def test_a_folder_that_cannot_be_opened_is_told_and_tried_again(embedded):
    client, kept = embedded.test_client(), embedded.extensions["search"].store()
    client.post("/api/collections", json={"name": "notes"})
    kept.close()
    note = kept.folder / "notes" / "collection.json"
    whole = note.read_text()
    for _ in range(3):
        note.write_text("{")
        answer = client.get("/api/collections/notes")
        assert answer.status_code == 503
        assert f"The embedded store in {kept.folder} cannot be opened" in answer.text
        note.write_text(whole)
        assert client.get("/api/collections/notes").json["name"] == "notes"
        kept.close()


def test_what_was_not_finished_is_cleaned_away(embedded):
    engine = embedded.extensions["search"]
    (engine.store().folder / "half" / "shard").mkdir(parents=True)
    assert engine.store().collections() == []
    assert not (engine.store().folder / "half").exists()


# --- large ingests


def lines(count, word="number"):
    return "".join(json.dumps({"id": f"d{n}", "text": f"Document {word} {n}."}) + "\n" for n in range(count))


def ended(client, url):
    return wait_for(
        lambda: (note := client.get(url).json)["state"] not in ("waiting", "running") and note,
        what="the end of the ingest",
    )


def test_a_large_ingest_goes_on_in_the_background_and_tells_how_far_it_is(client):
    body = lines(150) + "\n{broken\n" + json.dumps({"id": "..", "text": "x"}) + "\n" + json.dumps({"text": "last"})
    answer = client.put("/api/collections/notes/documents", data=body, content_type="application/x-ndjson")
    assert answer.status_code == 202, answer.json
    note = ended(client, answer.headers["Location"])
    assert (note["state"], note["documents"], note["added"], note["percent"]) == ("done", 151, 151, 100.0)
    assert [wrong["line"] for wrong in note["wrong_lines"]] == [152, 153]
    assert client.get("/api/collections/notes").json["points"] == 155
    assert client.get("/api/collections/notes/ingests").json["ingests"][0]["id"] == note["id"]


@pytest.mark.parametrize(("query", "field"), [("size=5", "size"), ("size=", "size"), ("overlap=1_0", "overlap")])
def test_a_wrong_size_in_the_address_is_refused_by_its_name_whatever_the_body(embedded, query, field):
    client = embedded.test_client()
    client.put("/api/collections/notes", json={})
    for more in ({"json": {"documents": DOCUMENTS}}, {"data": lines(1), "content_type": "application/x-ndjson"}):
        answer = client.put(f"/api/collections/notes/documents?{query}", **more)
        assert (answer.status_code, answer.json["errors"][0]["field"]) == (422, field)


def test_the_size_in_the_address_holds_for_json_without_one_of_its_own(embedded):
    client, text = embedded.test_client(), "Cats sleep all day and hunt at night. " * 20
    for name, body in (("address", {}), ("body", {"chunk": {"size": 2000}})):
        client.put(f"/api/collections/{name}", json={})
        body |= {"documents": [{"id": "a", "text": text}]}
        added = client.put(f"/api/collections/{name}/documents?size=200", json=body).json["added"]
        assert (added > 3) == (name == "address")


def test_an_ingest_waits_for_the_embedding_server_and_goes_on_after_a_restart(ports, tmp_path):
    app = made_app(tmp_path, embeddings=ports["embeddings"])
    client = app.test_client()
    client.post("/api/collections", json={"name": "notes"})
    inventory(tmp_path / "hosts.yml", embeddings=9)
    app.extensions["gateway"].cluster._inventory_checked = 0
    url = client.put("/api/collections/notes/documents", data=lines(100), content_type="application/x-ndjson").headers[
        "Location"
    ]
    wait_for(
        lambda: (client.get(url).json["message"] or "").startswith("Waiting"), what="waiting for the embedding server"
    )
    app.extensions["search"].close()  # this server ends; another one takes the note up
    second = made_app(tmp_path, embeddings=ports["embeddings"])
    second.extensions["search"].ingests.resume()
    note = ended(second.test_client(), url)
    assert (note["state"], note["added"]) == ("done", 100)
    second.extensions["search"].close()


def test_an_ingest_can_be_ended(client, app, tmp_path):
    go, told = threading.Event(), {"added": 0, "truncated": []}
    app.extensions["search"].writer.put = lambda *_, **__: go.wait(60) and told
    url = client.put("/api/collections/notes/documents", data=lines(5000), content_type="application/x-ndjson").headers[
        "Location"
    ]
    assert client.delete(url).json["state"] == "cancelled"
    go.set()
    assert client.get(url).json["state"] == "cancelled"
    wait_for(lambda: not list((tmp_path / "state/ingests").glob("*.ndjson")), what="the end of its lines")


# --- pure functions


@given(st.text(alphabet="ab .!?\n\u2026x\u00e9", max_size=2000), st.integers(20, 300), st.integers(0, 9))
def test_chunks_cover_the_text_in_order_and_none_is_too_long(text, size, overlap):
    found = chunks.split(text, size, overlap)
    covered = set()
    for chunk in found:
        assert text[chunk.start : chunk.end] == chunk.text
        assert 0 < len(chunk.text) <= size
        covered.update(range(chunk.start, chunk.end))
    assert all(char.isspace() for place, char in enumerate(text) if place not in covered)
    starts = [chunk.start for chunk in found]
    assert starts == sorted(set(starts))
    assert [chunk.number for chunk in found] == list(range(len(found)))


def test_chunks_end_at_paragraphs_before_sentences_before_words():
    text = "One sentence here. Another sentence.\n\nA new paragraph of words that goes on and on and on."
    assert next(chunk.text for chunk in chunks.split(text, 60, 0)).endswith("Another sentence.")


def test_an_id_tells_the_collection_the_document_the_chunk_and_the_content():
    one = chunks.Chunk(0, 0, 5, "hello")
    ids = {
        chunks.point_id("a", "d", one),
        chunks.point_id("b", "d", one),
        chunks.point_id("a", "e", one),
        chunks.point_id("a", "d", chunks.Chunk(1, 0, 5, "hello")),
        chunks.point_id("a", "d", chunks.Chunk(0, 0, 5, "hallo")),
    }
    assert len(ids) == 5
    assert chunks.point_id("a", "d", chunks.Chunk(0, 7, 12, "hello")) in ids  # where it stands is not what it is


@given(st.text(max_size=400), st.text(max_size=40), st.integers(1, 100))
def test_a_snippet_is_a_part_of_the_text_and_its_highlights_are_words_of_the_query(text, query, size):
    made = chunks.snippet(text, query, size)
    assert len(made["text"]) <= size + 4
    for start, end in made["highlights"]:
        assert made["text"][start:end].casefold() in {word.casefold() for word in chunks.WORD.findall(query)}


def test_fusion_is_what_qdrants_own_is(tmp_path):
    import qdrant_edge as q

    shard = q.EdgeShard.create(
        str(tmp_path),
        q.EdgeConfig(vectors={name: q.EdgeVectorParams(size=2, distance=q.Distance.Dot) for name in "ab"}),
    )
    rows = {n: {"a": [float(n), 0.0], "b": [0.0, float(n * 7 % 11)]} for n in range(1, 10)}
    shard.update(q.UpdateOperation.upsert_points([q.Point(id=n, vector=v, payload={}) for n, v in rows.items()]))
    asked = [q.Query.Nearest([1.0, 0.0], using="a"), q.Query.Nearest([0.0, 1.0], using="b")]
    rankings = [[(p.id, p.score) for p in shard.query(q.QueryRequest(limit=9, query=query))] for query in asked]
    prefetches = [q.Prefetch(limit=9, query=query) for query in asked]
    # Qdrant counts ranks from 0, the paper and this from 1.
    for theirs, ours in ((q.Fusion.Rrf(k=61), fusion.rrf(rankings, k=60)), (q.Fusion.Dbsf(), fusion.dbsf(rankings))):
        native = shard.query(q.QueryRequest(limit=9, query=theirs, prefetches=prefetches))
        assert {p.id: p.score for p in native} == pytest.approx(ours, abs=1e-5)
