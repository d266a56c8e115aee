"""Real clients against the demo: openai, LangChain, cohere; rerank as TEI is asked for it; the document's examples."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import subprocess
import sys
import types
import urllib.request

import cohere
import openai
import pytest

from tests.conftest import PROJECT
from tests.embedders import inventory, serving
from tests.support import Server, run_async, wait_for

TEXTS = ["The cat sleeps on the mat.", "Stocks fell on Monday.", "A sleeping cat."]


pytestmark = pytest.mark.xdist_group("gateway_embeddings")


@pytest.fixture(scope="module")
def cluster(shared_cluster):
    """The Sparks, for all of these tests."""
    return shared_cluster


@pytest.fixture(scope="module")
def server(shared_server):
    """`spark-control serve` in front of the demo."""
    return shared_server


def test_openais_client_embeds_as_it_is(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    packed = client.embeddings.create(model="default", input=TEXTS)  # base64 is what it asks for
    plain = client.embeddings.create(model="default", input=TEXTS, encoding_format="float")
    assert packed.model == "demo/embedder"
    for one, other in zip(packed.data, plain.data, strict=True):
        assert list(one.embedding) == pytest.approx(list(other.embedding), abs=1e-6)
    assert len(client.embeddings.create(model="embedder", input="x", dimensions=64).data[0].embedding) == 64
    with pytest.raises(openai.NotFoundError, match="demo/embedder"):
        client.embeddings.create(model="text-embedding-3-small", input="x")
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="default", input="")
    with pytest.raises(openai.BadRequestError, match="less than 512 tokens"):
        client.embeddings.create(model="default", input="word " * 600)
    cut = client.embeddings.create(model="default", input=["x", "word " * 600], extra_body={"truncate": True})
    assert cut.model_extra["truncated"] == [1]

    async def many():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as asked:
            calls = [asked.embeddings.create(model="default", input=[f"text {n}"] * 70) for n in range(8)]
            return await asyncio.gather(*calls)

    assert [len(answer.data) for answer in run_async(many())] == [70] * 8


def test_rerank_as_coheres_clients_ask_for_it_and_in_teis_shape(server):
    query = "Where does the cat sleep?"
    for made in (cohere.ClientV2, cohere.Client):  # POST /v2/rerank, POST /v1/rerank
        client = made(api_key="none", base_url=server.url)
        ranked = client.rerank(model="default", query=query, documents=TEXTS)
        scores = [row.relevance_score for row in ranked.results]
        assert ranked.results[0].index == 0
        assert scores == sorted(scores, reverse=True)
        assert ranked.id
        assert ranked.meta.billed_units.search_units == 1
        assert len(client.rerank(model="reranker", query=query, documents=TEXTS, top_n=1).results) == 1
        with pytest.raises(cohere.NotFoundError, match="demo/reranker"):
            client.rerank(model="rerank-v3.5", query=query, documents=TEXTS)
        with pytest.raises(cohere.BadRequestError, match="documents"):
            client.rerank(model="default", query=query, documents=[])
    shown = client.rerank(query=query, documents=TEXTS, return_documents=True)
    assert shown.results[0].document.text == TEXTS[0]
    status, rows = server.ask("POST", "/v1/rerank", {"query": query, "texts": TEXTS})
    assert (status, rows[0]["index"], set(rows[0])) == (200, 0, {"index", "score"})


def test_a_hundred_megabytes_of_json_are_refused_before_they_are_read(server):
    for path, method in (("/v1/embeddings", "POST"), ("/api/collections/a/documents", "PUT")):
        for length in (True, False):
            assert refused(server, method, path, with_length=length) == 413
    assert server.ask("GET", "/healthz")[0] == 200


def refused(server, method, path, *, with_length):
    """The status of 100 MB of JSON, sent until the server answers."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest(method, path)
    connection.putheader("Content-Type", "application/json")
    connection.putheader(*(("Content-Length", str(100 << 20)) if with_length else ("Transfer-Encoding", "chunked")))
    connection.endheaders()
    piece = b" " * (1 << 20)
    try:
        for _ in range(100):
            connection.send(piece if with_length else b"%x\r\n%b\r\n" % (len(piece), piece))
    except OSError:
        pass  # it answers and hangs up in the middle
    try:
        return connection.getresponse().status
    except (ConnectionError, http.client.RemoteDisconnected):
        return 413  # the answer was lost with the connection that we kept writing into
    finally:
        connection.close()


def test_a_body_that_is_cut_short_is_a_400_and_costs_no_thread(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("POST", "/v1/embeddings", b'{"input": "x"', {"Content-Type": "application/json"})
    assert connection.getresponse().status == 400
    connection.close()


def test_the_server_down_is_told_and_comes_back_by_itself(server, cluster):
    assert server.ask("POST", "/v1/embeddings", {"input": "x"})[0] == 200
    cluster.run("demo", "--limit", "spark2", demo_spark_state="stopped")
    status, body = server.ask("POST", "/v1/embeddings", {"input": "x"})
    assert status == 503
    assert "embedding server on spark2" in body["error"]["message"]
    cluster.run("demo", "--limit", "spark2")
    assert server.ask("POST", "/v1/embeddings", {"input": "x"})[0] == 200


def test_a_client_that_hangs_up_ends_the_batches_it_asked_for(cluster, tmp_path):
    with serving("tei:embed", seconds=0.5) as [port]:
        environment = cluster.environment | {
            "ANSIBLE_INVENTORY": str(inventory(tmp_path / "hosts.yml", embeddings=port)),
            "SPARK_CONTROL_STATE": str(tmp_path / "other"),
        }
        server = Server(types.SimpleNamespace(environment=environment))
        try:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            body = json.dumps({"input": [f"text {n}" for n in range(2000)]})  # 63 batches: 8 s
            connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
            wait_for(lambda: asked(port) >= 4, what="the first batches")
            connection.close()
            at_once = asked(port)
            wait_for(lambda: 'status="499"' in text_of(f"{server.url}/metrics"), 10, "the hang-up's count")
            assert asked(port) <= at_once + 4, "batches went on for a client that was gone"
        finally:
            server.stop()


def text_of(url):
    with urllib.request.urlopen(url) as answer:
        return answer.read().decode()


def asked(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/requests") as answer:
        return json.load(answer).get("/embed", 0)


# --- docs/embeddings.md


def test_every_example_of_the_document_runs_and_answers_what_it_shows(server, tmp_path):
    page = (PROJECT / "docs/embeddings.md").read_text()
    environment = os.environ | {"SPARK": server.url}
    said, ran = "", 0
    for kind, code in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.M | re.S):
        if kind == "json":
            shown = json.loads(code)
            given = json.loads(said.strip().splitlines()[-1])
            assert same_shape(shown, given), f"the document shows\n{code}\nand the server said\n{said}"
            continue
        if kind == "sh" and code.startswith("export SPARK="):
            continue
        command = ["bash", "-euo", "pipefail", "-c", code] if kind == "sh" else [sys.executable, "-c", code]
        run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, f"{code}\n{run.stdout}\n{run.stderr}"
        said, ran = run.stdout, ran + 1
        if '"state":"waiting"' in said:
            ingest = json.loads(said.splitlines()[-1])["url"]
            wait_for(lambda url=ingest: server.ask("GET", url)[1]["percent"] == 100, what="the end of the ingest")
    assert ran >= 10


def same_shape(shown, given):
    """Whether everything that is shown is there: keys, and the kinds of values."""
    if isinstance(shown, dict):
        return isinstance(given, dict) and all(k in given and same_shape(v, given[k]) for k, v in shown.items())
    if isinstance(shown, list):
        return isinstance(given, list) and (not shown or (bool(given) and same_shape(shown[0], given[0])))
    numbers = (int, float)
    return isinstance(given, numbers if isinstance(shown, numbers) else type(shown))
