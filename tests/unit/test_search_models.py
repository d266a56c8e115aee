"""A collection and its models: whatever answers at the embedding server's address, no two models' vectors meet."""

from __future__ import annotations

import json
import random

import pytest

from tests.embedders import app, qdrant, serving
from tests.support import wait_for
from webui.gateway.search import ALIKE, CANARY, cosine, sparse_cosine

KINDS = ["tei:embed", "vllm:all", "infinity:all", "flag:all", "openai:all"]
SIZE = {"dimensions": 64}
OTHERS = {  # than serves at first, by what a test calls it
    "another name": {"model": "org/model-b"},
    "the same name": {"model": "org/model-a", "weights": "b"},
}
CATS = {"id": "cats", "text": "cats sleep all day"}


@pytest.fixture(scope="module")
def server_port():
    with qdrant() as port:
        yield port


@pytest.fixture
def made(tmp_path):
    """made(kinds, **more) -> (client, ports): servers of model a were there when `notes` was made; they are gone."""
    apps = []

    def make(*serve, collection=None, **more):
        with serving(*serve, model="org/model-a", **SIZE) as ports:
            services = dict(zip(("embeddings", "sparse"), ports, strict=False)) | more
            apps.append(app(tmp_path, **services))
            client = apps[0].test_client()
            assert client.put("/api/collections/notes", json=collection or {"sparse": "none"}).status_code == 201
            assert client.put("/api/collections/notes/documents", json={"documents": [CATS]}).json["added"] == 1
            assert hits(client) == ["cats"]
        return client, ports

    yield make
    for item in apps:
        item.extensions["search"].store().delete("notes")
        item.extensions["search"].close()


def find(client, **more):
    return client.post("/api/collections/notes/search", json={"query": "cats sleep"} | more)


def hits(client, **more):
    return [hit["document"] for hit in find(client, **more).json["hits"]]


def put(client, *documents):
    return client.put("/api/collections/notes/documents", json={"documents": documents})


def send(client, *documents):
    """The address of an ingest."""
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    return client.put("/api/collections/notes/documents", data=lines, content_type="application/x-ndjson").json["url"]


def ended(client, url, state="done"):
    """The note of an ingest that has come to that."""
    return wait_for(lambda: (n := client.get(url).json)["state"] == state and n, what=f"the ingest to be {state}")


def refused(answer, other):
    """Whether it is a 409 that names what must be known."""
    assert answer.status_code == 409, answer.json
    assert "org/model-a" in answer.json["detail"]
    if other == "another name":
        assert "org/model-b is served now" in answer.json["detail"]
    else:
        assert "gives other vectors than then" in answer.json["detail"]
    return True


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_the_same_size_is_found_out_by_the_first_request(kind, other, made):
    """Be it a search, a put or an ingest: nothing of the other model comes out or goes in."""
    client, [port] = made(kind)
    again = f"{kind}:{port}"
    with serving(again, **OTHERS[other], **SIZE):
        assert refused(find(client), other)
    with serving(again, model="org/model-a", **SIZE):
        assert hits(client) == ["cats"]
    with serving(again, **OTHERS[other], **SIZE):
        assert refused(put(client, {"id": "mice", "text": "mice eat"}), other)
    with serving(again, model="org/model-a", **SIZE):
        assert put(client, CATS).json["unchanged"] == 1
    with serving(again, **OTHERS[other], **SIZE):
        note = ended(client, send(client, {"id": "dogs", "text": "dogs bark"}), "failed")
        assert (note["resumable"], note["added"]) == (True, 0), note
        assert "org/model-a" in note["message"]
    assert client.get("/api/collections/notes").json["points"] == 1
    with serving(again, model="org/model-a", **SIZE):
        assert client.post(note["url"]).json["state"] == "waiting"
        note = ended(client, note["url"])
        assert (note["added"], note["resumable"], note["message"]) == (1, False, None)
        assert client.post(note["url"]).status_code == 409
        assert set(hits(client)) == {"cats", "dogs"}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(
    "kinds", [("tei:embed", "tei:sparse"), ("flag:all",), ("vllm:all",)], ids=lambda kinds: kinds[0]
)
def test_so_is_a_model_for_sparse_vectors(kinds, other, made):
    client, ports = made(*kinds, collection={"sparse": "model"})
    again = [f"{kind}:{port}" for kind, port in zip(kinds, ports, strict=True)]
    assert client.get("/api/collections/notes").json["sparse"] == "model"
    # Of several servers, only the last is another; of one, the query's dense vector is the caller's own.
    with serving(*again[:-1], model="org/model-a", **SIZE), serving(again[-1], **OTHERS[other], **SIZE):
        assert refused(find(client, mode="sparse"), other)
        assert refused(find(client, vector=[0.1] * 64), other)
        assert refused(put(client, {"text": "new"}), other)
        if len(kinds) > 1:
            assert hits(client, mode="dense") == ["cats"]
        assert hits(client, mode="dense", vector=[0.1] * 64) == ["cats"]
    with serving(*again, model="org/model-a", **SIZE):
        assert hits(client, mode="sparse") == ["cats"]


def test_words_that_are_weighed_here_need_no_model(made):
    client, [port] = made("tei:embed", collection={"sparse": "bm25"})
    assert hits(client, mode="sparse") == ["cats"]  # with nothing at the address
    with serving(f"tei:embed:{port}", **OTHERS["another name"], **SIZE):
        assert hits(client, mode="sparse") == ["cats"]
        assert refused(find(client, mode="hybrid"), "another name")


def test_a_collection_in_a_qdrant_server_knows_its_model_too(made, server_port):
    client, [port] = made("flag:all", collection={"sparse": "model", "dimensions": 64}, qdrant=server_port)
    for other, options in OTHERS.items():
        with serving(f"flag:all:{port}", **options, **SIZE):
            assert refused(find(client), other)
            assert refused(put(client, {"text": "new"}), other)
    with serving(f"flag:all:{port}", model="org/model-a", **SIZE):
        assert hits(client) == ["cats"]


def test_a_shortened_collections_model_is_known_by_its_shortened_vector(made):
    client, [port] = made("vllm:all", collection={"sparse": "none", "dimensions": 16})
    with serving(f"vllm:all:{port}", **OTHERS["the same name"], **SIZE):
        assert refused(find(client), "the same name")
    with serving(f"vllm:all:{port}", model="org/model-a", **SIZE):
        assert hits(client) == ["cats"]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_small_batch_has_room_for_the_canary(batch, tmp_path):
    with serving("tei:embed", "tei:sparse", batch=batch, **SIZE) as [dense, sparse]:
        made = app(tmp_path, embeddings=dense, sparse=sparse)
        client = made.test_client()
        client.put("/api/collections/notes", json={})
        documents = [{"id": f"d{n}", "text": f"text number {n}"} for n in range(7)]
        assert put(client, *documents).json["added"] == 7
        assert client.get("/api/collections/notes").json["points"] == 7
        made.extensions["search"].close()


def test_a_model_that_is_exchanged_during_an_ingest_ends_it_and_it_goes_on_with_the_first(made):
    client, [port] = made("tei:embed")
    documents = [{"id": f"d{n}", "text": f"text number {n}"} for n in range(200)]
    with serving(f"tei:embed:{port}", model="org/model-a", seconds=0.05, **SIZE):
        lines = "".join(json.dumps(document) + "\n" for document in documents)
        url = client.put("/api/collections/notes/documents", data=lines, content_type="application/x-ndjson").json[
            "url"
        ]
        wait_for(lambda: client.get(url).json["added"], what="the first documents")
    with serving(f"tei:embed:{port}", **OTHERS["the same name"], **SIZE):
        note = ended(client, url, "failed")
        assert 0 < note["added"] < 200
        assert client.get("/api/collections/notes").json["points"] == note["added"] + 1
    with serving(f"tei:embed:{port}", model="org/model-a", **SIZE):
        assert client.post(url).status_code == 200
        assert ended(client, url)["documents"] == 200
    assert client.get("/api/collections/notes").json["points"] == 201


def test_the_bound_tells_a_models_own_rounding_from_another_model():
    """8 bits a number is the coarsest that a model is served in; the simulation's other model is as unlike as any."""
    rng = random.Random(1)
    one = [rng.gauss(0, 1) for _ in range(256)]
    step = max(map(abs, one)) / 127
    assert cosine(one, [round(value / step) * step for value in one]) > ALIKE
    assert abs(cosine(one, [rng.gauss(0, 1) for _ in range(256)])) < 0.3
    assert cosine(one, [0.0] * 256) == 0
    assert sparse_cosine(([1, 5], [1.0, 2.0]), ([1, 5], [1.001, 1.999])) > ALIKE
    assert sparse_cosine(([1, 5], [1.0, 2.0]), ([2, 6], [1.0, 2.0])) == 0
    assert sparse_cosine(([], []), ([], [])) == 1
    assert len(CANARY.split()) < 8  # or a model that takes little would cut it
