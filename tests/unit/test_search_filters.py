"""A search's filter is Qdrant's JSON, as people write it and as its client dumps it; it reaches every key there is."""

from __future__ import annotations

import itertools
import json
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import models

from tests.embedders import app as app_of
from tests.embedders import qdrant, serving

DOCUMENTS = {
    "cats": {"lang": "en", "year": 2020, "tags": ["a", "b"], "empty": [], "none": None},
    "stocks": {"lang": "en", "year": 2024, "Größe": 18, "parts": [{"id": 1, "ok": True}, {"id": 2, "ok": False}]},
    "katzen": {"lang": "de", "year": 2024, "tags": ["b", "c", "d"], "größe in cm": {"हिन्दी": "ja", "a.b": True}},
    "part": {"when": "2026-01-05T10:00:00Z", "metadata": {"lang": "fr"}, "": 5, "ok": [True]},
}
EVERYTHING = set(DOCUMENTS)


@pytest.fixture(scope="module", params=["embedded", "server"])
def client(request, tmp_path_factory):
    """With a collection `notes` that holds DOCUMENTS, in the embedded store or on a Qdrant server."""
    with serving("tei:embed", dimensions=16) as [port], qdrant() as server_port:
        services = {"embeddings": port} | ({"qdrant": server_port} if request.param == "server" else {})
        app = app_of(tmp_path_factory.mktemp(request.param), **services)
        client = app.test_client()
        client.put("/api/collections/notes", json={"sparse": "none"})
        documents = [{"id": name, "text": f"text of {name}", "metadata": it} for name, it in DOCUMENTS.items()]
        assert client.put("/api/collections/notes/documents", json={"documents": documents}).json["added"] == 4
        yield client
        app.extensions["search"].close()


def search(client, condition):
    return client.post("/api/collections/notes/search", json={"query": "text", "limit": 50, "filter": condition})


def found(client, condition):
    answer = search(client, condition)
    assert answer.status_code == 200, answer.json
    return {hit["document"] for hit in answer.json["hits"]}


EN = {"key": "lang", "match": {"value": "en"}}
UNSET = dict.fromkeys(["geo_bounding_box", "geo_radius", "geo_polygon", "values_count", "is_empty", "is_null"])
TAKEN = [
    ({"must": [EN], "must_not": None, "should": None, "min_should": None}, {"cats", "stocks"}),
    ({"must": EN}, {"cats", "stocks"}),
    ({"must_not": EN}, {"katzen", "part"}),
    ({"should": EN, "must": {"key": "year", "range": {"lt": 2024}}}, {"cats"}),
    ({"must": [{"key": "year", "range": {"gte": 2023, "lt": None}}]}, {"stocks", "katzen"}),
    ({"must": [EN | {"range": None} | UNSET]}, {"cats", "stocks"}),
    ({"must": {"must": EN, "should": None}}, {"cats", "stocks"}),
    ({"must": {"should": [EN, {"must_not": [EN], "must": None}]}}, EVERYTHING),
    ({}, EVERYTHING),
    ({"must": []}, EVERYTHING),
    ({"must": None, "should": [], "must_not": [], "min_should": None}, EVERYTHING),
    ({"must": [{}]}, EVERYTHING),
    ({"must_not": [{"must": []}]}, set()),
    ({"must": [{"key": "lang", "match": {"any": []}}]}, set()),
    ({"must": [{"key": "lang", "match": {"except": []}}]}, {"cats", "stocks", "katzen"}),
    ({"must": [{"key": "lang", "match": {"except_": ["de"]}}]}, {"cats", "stocks"}),
    ({"must": {"is_empty": {"key": "lang"}}}, {"part"}),
    ({"must": {"key": "tags", "is_empty": True}}, {"stocks", "part"}),
    ({"must": {"key": "tags", "is_empty": False}}, {"cats", "katzen"}),
    ({"must": {"is_null": {"key": "none"}}}, {"cats"}),
    ({"must": {"key": "none", "is_null": True}}, {"cats"}),
    ({"must": [{"key": "none", "is_null": False}, EN]}, {"stocks"}),
    ({"must": {"key": "tags", "values_count": {"gte": 3, "lt": None}}}, {"katzen"}),
    ({"min_should": {"conditions": [EN, {"key": "year", "range": {"gte": 2024}}], "min_count": 2}}, {"stocks"}),
    ({"min_should": {"conditions": EN, "min_count": 1}}, {"cats", "stocks"}),
    ({"must": {"key": "when", "range": {"gt": "2026-01-01T00:00:00Z", "lte": None}}}, {"part"}),
    ({"must": {"key": "Größe", "range": {"gte": 18}}}, {"stocks"}),
    ({"must": {"key": '"Größe"', "match": {"value": 18}}}, {"stocks"}),
    ({"must": {"key": "größe in cm.हिन्दी", "match": {"value": "ja"}}}, {"katzen"}),
    ({"must": {"key": 'größe in cm."a.b"', "match": {"value": True}}}, {"katzen"}),
    ({"must": {"key": "größe in cm.a.b", "match": {"value": True}}}, set()),
    ({"must": {"key": "parts[].id", "match": {"value": 2}}}, {"stocks"}),
    ({"must": {"key": "parts[].ok", "match": {"value": False}}}, {"stocks"}),
    ({"must": {"key": "ok", "match": {"value": True}}}, {"part"}),
    ({"must": {"key": "metadata.lang", "match": {"value": "fr"}}}, set()),
    ({"must": {"key": "metadata.metadata.lang", "match": {"value": "fr"}}}, {"part"}),
    ({"must": {"key": '""', "match": {"value": 5}}}, {"part"}),
    ({"must": {"key": "document", "match": {"any": ["cats", "part"]}}}, {"cats", "part"}),
    ({"must": {"has_id": []}}, set()),
    ({"must": {"has_id": [str(uuid.UUID(int=7)), 7]}}, set()),
]


@pytest.mark.parametrize(("condition", "documents"), TAKEN, ids=[json.dumps(it)[:60] for it, _ in TAKEN])
def test_a_filter_as_qdrant_takes_it(client, condition, documents):
    for _ in range(2):  # the first search of a kind makes an index, the second one uses it
        assert found(client, condition) == documents


def test_hits_are_found_by_their_ids(client):
    hits = search(client, None).json["hits"]
    assert found(client, {"must": {"has_id": [hits[1]["id"], hits[2]["id"]]}}) == {h["document"] for h in hits[1:3]}


def field(key, **condition):
    return models.FieldCondition(key=key, **condition)


DUMPED = [
    (models.Filter(must=[field("lang", match=models.MatchValue(value="en"))]), {"cats", "stocks"}),
    (models.Filter(must=field("lang", match=models.MatchAny(any=["de"]))), {"katzen"}),
    (models.Filter(must=[field("lang", match=models.MatchExcept(**{"except": ["de"]}))]), {"cats", "stocks"}),
    (models.Filter(must=[field("year", range=models.Range(gte=2024))]), {"stocks", "katzen"}),
    (models.Filter(must=[field("when", range=models.DatetimeRange(gt="2026-01-01T00:00:00Z"))]), {"part"}),
    (models.Filter(must=[field("tags", values_count=models.ValuesCount(gt=2))]), {"katzen"}),
    (models.Filter(must=[field("tags", is_empty=True)]), {"stocks", "part"}),
    (models.Filter(must_not=[models.IsEmptyCondition(is_empty=models.PayloadField(key="tags"))]), {"cats", "katzen"}),
    (models.Filter(must=[models.IsNullCondition(is_null=models.PayloadField(key="none"))]), {"cats"}),
    (models.Filter(must=[models.HasIdCondition(has_id=[str(uuid.UUID(int=7))])]), set()),
    (models.Filter(should=[models.Filter(must=[field("year", range=models.Range(lt=2021))])]), {"cats"}),
    (
        models.Filter(
            min_should=models.MinShould(
                conditions=[field("lang", is_empty=False), field("year", range=models.Range(lt=2024))], min_count=2
            )
        ),
        {"cats"},
    ),
    (models.Filter(), EVERYTHING),
]


@pytest.mark.parametrize(("condition", "documents"), DUMPED)
def test_a_filter_as_qdrants_client_dumps_it(client, condition, documents):
    for by_alias, exclude_none in itertools.product([True, False], repeat=2):
        dumped = condition.model_dump(mode="json", by_alias=by_alias, exclude_none=exclude_none)
        assert found(client, dumped) == documents, dumped


NOT_TAKEN = [
    [],
    "must",
    5,
    {"musst": [EN]},
    {"must": "x"},
    {"must": [None]},
    {"must": [[EN]]},
    {"must": [EN] * 51},
    {"must": [{"key": "a"}]},
    {"must": [{"key": "a", "match": None}]},
    {"must": [{"key": None, "match": {"value": 1}}]},
    {"must": [EN | {"range": {"gt": 1}}]},
    {"must": [EN | {"other": None}]},
    {"must": [{"key": "a", "match": {"value": None}}]},
    {"must": [{"key": "a", "match": {"value": 1.5}}]},
    {"must": [{"key": "a", "match": {"value": 2**63}}]},
    {"must": [{"key": "a", "match": {"value": "\ud800"}}]},
    {"must": [{"key": "a", "match": {"text": "x"}}]},
    {"must": [{"key": "a", "match": {"any": [1, "a"]}}]},
    {"must": [{"key": "a", "match": {"any": [True]}}]},
    {"must": [{"key": "a", "match": {"any": [1] * 1001}}]},
    {"must": [{"key": "a", "range": {}}]},
    {"must": [{"key": "a", "range": {"gt": None}}]},
    {"must": [{"key": "a", "range": {"gt": 1, "x": None}}]},
    {"must": [{"key": "a", "range": {"gt": 1, "lt": "2026-01-01"}}]},
    {"must": [{"key": "a", "range": {"gt": True}}]},
    {"must": [{"key": "a", "values_count": {"gt": 1.5}}]},
    {"must": [{"key": "a", "values_count": {"gt": -1}}]},
    {"must": [{"key": "a", "is_empty": 1}]},
    {"must": [{"key": "a", "geo_radius": {"center": {"lat": 1, "lon": 1}, "radius": 1}}]},
    {"must": [{"is_empty": {"key": "a", "b": 1}}]},
    {"must": [{"is_null": "a"}]},
    {"must": [{"has_id": "x"}]},
    {"must": [{"has_id": ["x"]}]},
    {"must": [{"has_id": [-1]}]},
    {"must": [{"nested": {"key": "a", "filter": {}}}]},
    {"min_should": {"conditions": [EN]}},
    {"min_should": {"conditions": [EN], "min_count": -1}},
    {"min_should": {"conditions": [EN], "min_count": True}},
    {"min_should": [EN]},
    {"must": {"must": {"must": {"must": {"must": {"must": EN}}}}}},
    *({"must": [EN | {"key": key}]} for key in ("", ".", "a.", ".a", "a..b", 'a"b', '"a', "a\\b", "a[0]", "[]")),
    {"must": [EN | {"key": "\ud800"}]},
    {"must": [EN | {"key": ".".join("abcdefghijk")}]},
]


@pytest.mark.parametrize("condition", NOT_TAKEN, ids=[str(it)[:60] for it in NOT_TAKEN])
def test_what_is_no_filter_is_refused_by_its_name(client, condition):
    body = json.dumps({"query": "text", "filter": condition})
    answer = client.post("/api/collections/notes/search", data=body, content_type="application/json")
    assert answer.status_code == 422, answer.json
    assert answer.json["errors"][0]["field"] == "filter"


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999", b"1" + b"0" * 400, b"1" + b"0" * 5000])
def test_a_number_that_is_none_is_refused_in_a_filter_and_in_a_vector(client, number):
    for field, text in (
        ("filter", b'{"query": "x", "filter": {"must": {"key": "year", "range": {"gt": %b}}}}' % number),
        ("filter", b'{"query": "x", "filter": {"must": {"key": "year", "match": {"value": %b}}}}' % number),
        ("vector", b'{"query": "x", "vector": [%b]}' % b", ".join([number] * 16)),
        ("limit", b'{"query": "x", "limit": %b}' % number),
    ):
        answer = client.post("/api/collections/notes/search", data=text, content_type="application/json")
        assert answer.status_code in (400, 422), answer.json
        assert answer.json["errors"][0]["field"].startswith(field)


def test_a_vector_of_large_numbers_gives_scores_that_are_numbers(client):
    for distance in ("cosine", "dot", "euclid"):
        path = f"/api/collections/{distance}"
        client.put(path, json={"sparse": "none", "distance": distance})
        client.put(f"{path}/documents", json={"documents": [{"text": "one text"}]})
        for vector in ([65503] * 16, [-65503, 65503] * 8, [0.0] * 16, [1e-300] * 16):
            answer = client.post(f"{path}/search", json={"query": "x", "vector": vector})
            assert answer.status_code == 200, answer.json
            [hit] = json.loads(answer.text, parse_constant=pytest.fail)["hits"]
            assert isinstance(hit["score"], float), vector
        assert client.post(f"{path}/search", json={"query": "x", "vector": [65504] * 16}).status_code == 422
        client.delete(f"{path}?confirm={distance}")


KEY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"\\'), max_size=20)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
VALUE = st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT


@settings(suppress_health_check=list(HealthCheck))
@given(path=st.lists(KEY, min_size=1, max_size=7), value=VALUE, several=st.booleans())
def test_whatever_can_be_stored_can_be_filtered_by(client, path, value, several):
    """Every key that a put takes, in quotes; every string, whole number and boolean at it."""
    metadata = [value, value] if several else value
    for step in reversed(path):
        metadata = {step: metadata}
    documents = [{"id": "any", "text": "any text", "metadata": metadata}]
    put = client.put("/api/collections/notes/documents", json={"documents": documents})
    assert put.status_code == 200, put.json
    key = ".".join(f'"{step}"' for step in path)
    try:
        assert "any" in found(client, {"must": {"key": key, "match": {"value": value}}})
        assert "any" in found(client, {"must": {"key": f"metadata.{key}", "is_empty": False}})
        assert "any" not in found(client, {"must": {"key": f"metadata.{key}", "is_empty": True}})
    finally:
        client.delete("/api/collections/notes/documents/any")
