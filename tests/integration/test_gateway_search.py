"""Search over the wire: stopped in the middle of an ingest by every road, tricks in addresses, LangChain."""

from __future__ import annotations

import http.client
import json
import os
import signal
import types
import urllib.request

import pytest

from tests.embedders import inventory, serving
from tests.support import Server, wait_for

pytestmark = pytest.mark.xdist_group("gateway_search")


@pytest.fixture
def server(shared_server):
    """`spark-control serve` in front of the demo, without a collection."""
    yield shared_server
    for made in shared_server.ask("GET", "/api/collections")[1]["collections"]:
        gone = shared_server.ask("DELETE", f"/api/collections/{made['name']}?confirm={made['name']}")
        assert gone[0] < 300, gone


@pytest.fixture
def alone(tmp_path):
    """alone(**ports): `spark-control serve` in front of embedding servers at those ports, and of no Sparks."""
    servers = []

    def make(**ports):
        environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ} | {
            "ANSIBLE_INVENTORY": str(inventory(tmp_path / "hosts.yml", **ports)),
            "SPARK_CONTROL_STATE": str(tmp_path / "state"),
        }
        servers.append(Server(types.SimpleNamespace(environment=environment)))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


def put_lines(server, name, count):
    """The address of a large ingest of `count` documents."""
    text = "".join(
        json.dumps({"id": f"d{n}", "text": f"Document number {n} of the manual."}) + "\n" for n in range(count)
    )
    request = urllib.request.Request(
        f"{server.url}/api/collections/{name}/documents",
        text.encode(),
        {"Content-Type": "application/x-ndjson"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 202
        return json.load(answer)["url"]


def test_an_ingest_that_is_killed_goes_on_where_it_was(server):
    assert server.ask("PUT", "/api/collections/manual", {})[1]["sparse"] == "model"
    url = put_lines(server, "manual", 3000)
    wait_for(lambda: server.ask("GET", url)[1]["documents"] > 100, 30, "the ingest's first hundred")
    server.kill()
    server.start()
    before = server.ask("GET", url)[1]
    note = wait_for(lambda: (n := server.ask("GET", url)[1])["state"] == "done" and n, 90, "the end of the ingest")
    assert before["documents"] < 3000, "it was over before it was killed"
    assert note["documents"] == 3000
    # What was written twice in the middle is the same points: their ids follow from what they are.
    assert server.ask("GET", "/api/collections/manual")[1]["points"] == 3000
    hits = server.ask("POST", "/api/collections/manual/search", {"query": "number 2999", "mode": "sparse"})[1]["hits"]
    assert hits[0]["document"] == "d2999"


STOPS = [
    ("the server", signal.SIGTERM),
    ("the store", signal.SIGKILL),
    ("the server", signal.SIGINT),
    ("the store", signal.SIGTERM),
    ("the server", signal.SIGKILL),
    ("the store", signal.SIGINT),
    ("the worker", signal.SIGKILL),
    ("the server", signal.SIGTERM),
]


def test_an_ingest_goes_on_whatever_is_stopped_and_however(alone):
    """Stop after stop in one ingest, each at another moment of it; what was in stays in, once."""
    with serving("tei:embed", dimensions=256, seconds=0.02) as [port]:
        server = alone(embeddings=port)
        server.ask("PUT", "/api/collections/manual", {"sparse": "bm25"})
        url = put_lines(server, "manual", 4000)
        documents = 0
        for what, by in STOPS:
            before = documents
            documents = wait_for(
                lambda before=before: (n := server.ask("GET", url)[1].get("documents", 0)) > before and n,
                what=f"more than {before} documents",
            )
            stop(server, what, by)
            assert server.ask("GET", url)[1]["state"] in ("waiting", "running"), f"after {by.name} of {what}"
        note = wait_for(lambda: (n := server.ask("GET", url)[1])["state"] == "done" and n, 120, "the ingest's end")
        assert (note["documents"], note["wrong"], note["message"]) == (4000, 0, None)
        assert server.ask("GET", "/api/collections/manual")[1]["points"] == 4000


def stop(server, what, by):
    """End the server, its worker or the store's process by a signal; it answers again when this returns."""
    if what == "the server":
        if by == signal.SIGKILL:
            server.kill()
        else:
            server.process.send_signal(by)
            server.process.wait(20)
        server.start()
        return
    pid = owners(str(server.state / "search")) if what == "the store" else children(server.process.pid)
    os.kill(pid[0], by)
    wait_for(lambda: server.ask("GET", "/api/collections/manual")[0] == 200, what=f"an answer after the end of {what}")


def children(pid):
    """Pids of a process's children."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def test_another_model_of_the_same_size_at_the_address_is_found_out_at_once(alone):
    """The stored collection is searched, put into, and the model asked for by its name: each the first request."""
    body = {"documents": [{"id": "cats", "text": "cats sleep all day"}]}
    with serving("tei:embed", model="org/model-a", dimensions=64) as [port]:
        server = alone(embeddings=port)
        server.ask("PUT", "/api/collections/notes", {"sparse": "none"})
        assert server.ask("PUT", "/api/collections/notes/documents", body)[0] == 200
    asked = [
        ("POST", "/api/collections/notes/search", {"query": "cats sleep"}, 409),
        ("PUT", "/api/collections/notes/documents", {"documents": [{"text": "cats eat mice"}]}, 409),
        ("POST", "/v1/embeddings", {"model": "org/model-b", "input": "x"}, 200),
    ]
    for method, path, body, expected in asked:
        with serving(f"tei:embed:{port}", model="org/model-b", dimensions=64):
            status, answer = server.ask(method, path, body)
            assert (status, "org/model-b" in json.dumps(answer)) == (expected, True), answer
        with serving(f"tei:embed:{port}", model="org/model-a", dimensions=64):
            assert server.ask("POST", "/api/collections/notes/search", {"query": "cats"})[0] == 200
    assert server.ask("GET", "/api/collections/notes")[1]["points"] == 1


def test_searching_goes_on_while_documents_come_in(server):
    server.ask("PUT", "/api/collections/manual", {})
    server.ask("PUT", "/api/collections/manual/documents", {"documents": [{"id": "first", "text": "The first one."}]})
    url = put_lines(server, "manual", 1500)
    answered = 0
    while server.ask("GET", url)[1]["state"] in ("waiting", "running"):
        status, body = server.ask("POST", "/api/collections/manual/search", {"query": "the first one", "limit": 1})
        assert status == 200, body
        answered += 1
    assert answered > 3
    assert server.ask("GET", url)[1]["added"] == 1500


def test_tricks_in_addresses_on_the_wire(server):
    server.ask("PUT", "/api/collections/notes", {})
    tricks = [
        "..",
        ".",
        "%2e%2e",
        "..%2f..%2f",
        "a%2f..%2fb",
        "a/../../jobs",
        "a%00",
        "a%0d%0aX: y",
        "%c0%ae%c0%ae",
        "a\\b",
    ]
    for trick in tricks:
        for method, rest in (
            ("GET", ""),
            ("DELETE", "?confirm=notes"),
            ("DELETE", "/documents/x"),
            ("GET", "/ingests/x"),
        ):
            status, kind = raw(server, method, f"/api/collections/{trick}{rest}")
            assert 300 <= status < 500, (method, trick, status)
            assert status < 400 or kind == "application/problem+json" or kind == "text/html", (method, trick, kind)
        status, _ = raw(server, "DELETE", f"/api/collections/notes/documents/{trick}")
        assert 300 <= status < 500, (trick, status)
        status, _ = raw(server, "GET", f"/api/collections/notes/ingests/{trick}")
        assert 300 <= status < 500, (trick, status)
    assert [item["name"] for item in server.ask("GET", "/api/collections")[1]["collections"]] == ["notes"]


def raw(server, method, path):
    """(status, content type) of an address that no client tidies up."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection._validate_path = lambda url: None
    connection.request(method, path, headers={"Accept": "application/json"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, (answer.getheader("Content-Type") or "").split(";")[0]


def test_the_stores_process_ends_with_the_server(server):
    server.ask("PUT", "/api/collections/notes", {})
    folder = str(server.state / "search")
    assert owners(folder)
    server.stop()
    wait_for(lambda: not owners(folder), 10, "the end of the store's process")
    server.start()
    assert server.ask("GET", "/api/collections")[1]["collections"][0]["name"] == "notes"


def owners(folder):
    """Pids of processes that were started for that store."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if folder.encode() in words and any(word.endswith(b"edge.py") for word in words):
            found.append(int(pid))
    return found


def test_langchain_retrieves_through_our_search(server):
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

    class Spark(BaseRetriever):
        """A retriever over one collection."""

        def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
            body = server.ask("POST", "/api/collections/notes/search", {"query": query, "limit": 2})[1]
            return [Document(page_content=hit["text"], metadata=hit["metadata"]) for hit in body["hits"]]

    server.ask("PUT", "/api/collections/notes", {})
    documents = [{"text": "Cats sleep all day.", "metadata": {"page": 1}}, {"text": "The valve is blue."}]
    assert server.ask("PUT", "/api/collections/notes/documents", {"documents": documents})[1]["added"] == 2
    found = Spark().invoke("sleeping cats")
    assert (found[0].page_content, found[0].metadata) == ("Cats sleep all day.", {"page": 1})
