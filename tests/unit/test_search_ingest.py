"""Documents on their way in: what is bad is left out or refused, what fails waits, what was deleted stays deleted."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import PROJECT
from tests.embedders import app as app_of
from tests.embedders import qdrant, serving
from tests.support import wait_for
from webui.gateway import ingest, store
from webui.gateway.errors import Refused


@pytest.fixture(scope="module")
def port():
    with serving("tei:embed", dimensions=16) as [port]:
        yield port


@pytest.fixture(scope="module")
def server_port():
    with qdrant() as port:
        yield port


@pytest.fixture(params=["embedded", "server"])
def app(request, port, server_port, tmp_path):
    """An app whose store is the embedded one, or a Qdrant server over HTTP."""
    made = app_of(tmp_path, embeddings=port, **({"qdrant": server_port} if request.param == "server" else {}))
    shelf = made.extensions["search"].store()
    yield made
    for item in shelf.collections():
        shelf.delete(item["name"])
    made.extensions["search"].close()


@pytest.fixture
def embedded(port, tmp_path):
    made = app_of(tmp_path, embeddings=port)
    yield made
    made.extensions["search"].close()


@pytest.fixture
def client(app):
    return with_notes(app)


def with_notes(app):
    """A client, with an empty collection `notes`."""
    client = app.test_client()
    assert client.put("/api/collections/notes", json={}).status_code == 201
    return client


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(ingest, "WAITS", (0.05,))


def rows(count, word="page"):
    return [{"id": f"{word}-{n}", "text": f"{word} number {n}"} for n in range(count)]


def send(client, documents, name="notes"):
    """The address of an ingest of documents, or of lines as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in documents]
    path = f"/api/collections/{name}/documents"
    answer = client.put(path, data=b"\n".join(lines), content_type="application/x-ndjson")
    assert answer.status_code == 202, answer.json
    return answer.json["url"]


def put(client, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.put("/api/collections/notes/documents", data=data, content_type="application/json")


def ended(client, url):
    """The note of an ingest, once it has ended."""
    over = ("done", "failed", "cancelled")
    return wait_for(lambda: (note := client.get(url).json)["state"] in over and note, what="the ingest's end")


def points(client, name="notes"):
    return client.get(f"/api/collections/{name}").json["points"]


def lines_kept(app):
    return list((app.extensions["search"].ingests.folder).glob("*.ndjson"))


# --- what cannot be taken

DEEP = b'{"a":' * 9 + b"1" + b"}" * 9
BAD = {  # a document's JSON: the field that is wrong
    b'{"text": "x", "metadata": {"price": NaN}}': "metadata",
    b'{"text": "x", "metadata": {"a": [1, {"b": -Infinity}]}}': "metadata",
    b'{"text": "x", "metadata": {"a": 1e999}}': "metadata",
    b'{"text": "x", "metadata": {"a": 9223372036854775808}}': "metadata",
    b'{"text": "x", "metadata": {"a": 1' + b"0" * 400 + b"}}": "metadata",
    b'{"text": "x", "metadata": {"a": 1' + b"0" * 5000 + b"}}": "metadata",
    b'{"text": "x", "metadata": {"a": "\\ud800"}}': "metadata",
    b'{"text": "x", "metadata": {"\\udfff": 1}}': "metadata",
    b'{"text": "x", "metadata": {"a\\"b": 1}}': "metadata",
    b'{"text": "x", "metadata": {"a": {"b\\\\c": 1}}}': "metadata",
    b'{"text": "x", "metadata": ' + DEEP + b"}": "metadata",
    b'{"text": "x", "metadata": {"a": ' + b"[" * 900 + b"]" * 900 + b"}}": "metadata",
    b'{"text": "x", "metadata": {"a": "' + b"b" * 17_000 + b'"}}': "metadata",
    b'{"text": "x", "metadata": 1e999}': "metadata",
    b'{"text": "\\ud800"}': "text",
    b'{"text": NaN}': "text",
    b'{"text": 1e999}': "text",
    b'{"text": "x", "id": NaN}': "id",
    b'{"text": "x", "id": "\\ud800"}': "id",
    b'{"text": "x", "vector": [NaN]}': "vector",
}
names = [f"{field}: {text[:50].decode()}" for text, field in BAD.items()]


@pytest.mark.parametrize(("text", "field"), BAD.items(), ids=names)
def test_a_bad_document_refuses_a_json_put_by_its_field_before_anything_is_written(client, text, field):
    good = [json.dumps(row).encode() for row in rows(ingest.GROUP + 5)]  # more than are written at once
    answer = put(client, b'{"documents": [%b, %b]}' % (b", ".join(good), text))
    assert answer.status_code in (400, 422), answer.json
    place = f"documents[{len(good)}].{field}"
    assert answer.json["errors"][0]["field"].startswith(place)
    assert answer.json["detail"].startswith((field, place)), answer.json["detail"]
    assert "PyO3" not in answer.text
    assert points(client) == 0


def test_bad_lines_are_left_out_and_listed_and_all_others_go_in(client):
    more = [b"{broken", b"[1]", b"\xff\xfe", b'{"text": "x", "metadata": ' + b"[" * 100_000, b"NaN", b"1e999"]
    bad = [*BAD, *more]
    lines = [line for pair in zip(rows(len(bad)), bad, strict=True) for line in pair]
    note = ended(client, send(client, lines))
    assert (note["state"], note["documents"], note["wrong"]) == ("done", len(bad), len(bad)), note
    assert [row["line"] for row in note["wrong_lines"]] == list(range(2, 2 * len(bad) + 1, 2))
    told = {row["line"]: row["reason"] for row in note["wrong_lines"]}
    for number, (_, field) in enumerate(BAD.items(), 1):
        assert field in told[2 * number] or told[2 * number] == "This is not JSON."
    assert "metadata.price: nan is no number" in told[2]
    assert points(client) == len(bad)


@pytest.mark.parametrize(
    "error", [store.Wrong("It is refused."), Refused(400, "It is refused.")], ids=["store", "model"]
)
def test_what_only_the_store_or_the_model_refuses_costs_that_line_alone(app, client, error, monkeypatch):
    engine = app.extensions["search"]
    vectors = engine.vectors

    def picky(settings, texts, **options):
        if any("7" in text for text in texts):
            raise error
        return vectors(settings, texts, **options)

    monkeypatch.setattr(engine, "vectors", picky)
    note = ended(client, send(client, rows(30)))
    assert (note["state"], note["documents"]) == ("done", 27)
    assert note["wrong_lines"] == [{"line": line, "reason": "It is refused."} for line in (8, 18, 28)]


plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=12)
key = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"\\'), max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    plain | finite, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(key, inner, max_size=3)
)


@settings(suppress_health_check=list(HealthCheck))
@given(metadata=st.dictionaries(key, values, min_size=1, max_size=3))
def test_metadata_that_are_taken_come_back_as_they_were(app, metadata):
    client = app.test_client()
    client.put("/api/collections/notes", json={"sparse": "none"})
    answer = put(client, {"documents": [{"id": "a", "text": "one text", "metadata": metadata}]})
    if answer.status_code == 422 and "levels" in answer.json["detail"]:
        return
    assert answer.status_code == 200, answer.json
    [hit] = client.post("/api/collections/notes/search", json={"query": "one text"}).json["hits"]
    assert same(hit["metadata"], metadata)


def same(one, other):
    """Whether two JSON values are one; a number may be off in its seventeenth digit, which is Qdrant's."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-15)
    return type(one) is type(other) and one == other


# --- a collection that is deleted, and made again, meanwhile


def made_again(client, name="notes", **options):
    assert client.delete(f"/api/collections/{name}?confirm={name}").status_code == 200
    assert client.put(f"/api/collections/{name}", json=options).status_code == 201


def during(engine, monkeypatch, act, call=1):
    """Have something happen while the vectors of a call are being made."""
    vectors, calls = engine.vectors, []

    def slow(settings, texts, **options):
        found = vectors(settings, texts, **options)
        calls.append(texts)
        if len(calls) == call:
            act()
        return found

    monkeypatch.setattr(engine, "vectors", slow)


@pytest.mark.parametrize("options", [{}, {"sparse": "none", "distance": "dot"}], ids=["alike", "of another make"])
def test_a_put_in_flight_does_not_fill_the_next_collection_of_that_name(app, client, options, monkeypatch):
    first = client.get("/api/collections/notes").json["identity"]
    during(app.extensions["search"], monkeypatch, lambda: made_again(client, **options), call=2)
    answer = put(client, {"documents": rows(150)})
    assert answer.status_code == 409, answer.json
    assert "deleted meanwhile" in answer.json["detail"]
    assert client.get("/api/collections/notes").json["identity"] not in (None, first)
    assert points(client) == 0


def test_nor_does_a_put_of_metadata_alone_or_a_document_that_is_taken_out(app, client, monkeypatch):
    put(client, {"documents": rows(2)})
    stamps, act = app.extensions["search"].store().stamps, [lambda: made_again(client)]

    def slow(*arguments):
        found = stamps(*arguments)
        if act:
            act.pop()()
            assert put(client, {"documents": rows(2)}).json["added"] == 2  # the same ids as before
        return found

    monkeypatch.setattr(app.extensions["search"].store(), "stamps", slow, raising=False)
    assert put(client, {"documents": [row | {"metadata": {"old": 1}} for row in rows(2)]}).status_code == 409
    act.append(lambda: made_again(client))
    assert client.delete("/api/collections/notes/documents/page-1").status_code == 409
    hits = client.post("/api/collections/notes/search", json={"query": "page number"}).json["hits"]
    assert sorted((hit["document"], hit["metadata"]) for hit in hits) == [("page-0", {}), ("page-1", {})]


def test_a_put_whose_collection_is_gone_is_a_404(app, client, monkeypatch):
    gone = "/api/collections/notes?confirm=notes"
    during(app.extensions["search"], monkeypatch, lambda: client.delete(gone))
    assert put(client, {"documents": rows(1)}).status_code == 404


def test_a_search_in_flight_is_not_answered_out_of_the_next_collection(app, client, monkeypatch):
    put(client, {"documents": rows(3)})
    during(app.extensions["search"], monkeypatch, lambda: made_again(client))
    answer = client.post("/api/collections/notes/search", json={"query": "page"})
    assert answer.status_code == 409, answer.json


def test_an_ingest_ends_with_its_collection_running_or_waiting(app, client, monkeypatch):
    client.put("/api/collections/other", json={})
    go, engine = threading.Event(), app.extensions["search"]
    during(engine, monkeypatch, lambda: go.wait(20))
    running = send(client, rows(200), "other")
    waiting = send(client, rows(40))
    wait_for(lambda: client.get(running).json["state"] == "running", what="the first ingest's start")
    made_again(client)
    note = client.get(waiting).json  # at once
    assert (note["state"], note["message"]) == ("failed", "The collection is not there any more.")
    made_again(client, "other")
    go.set()
    assert ended(client, running)["state"] == "failed"
    later = send(client, rows(1, "later"), "other")  # what comes next is not kept up
    assert (ended(client, later)["state"], points(client, "other"), points(client)) == ("done", 1, 0)
    assert lines_kept(app) == []
    assert client.post(waiting).status_code == 409


def test_lines_that_arrive_while_their_collection_is_made_again_are_not_put_in(app, client):
    engine = app.extensions["search"]

    def pieces():
        yield json.dumps(rows(1)[0]).encode()
        made_again(client)

    note = engine.ingests.add(engine.settings("notes"), pieces(), 1200, 150)
    assert ended(client, f"/api/collections/notes/ingests/{note['id']}")["state"] == "failed"
    assert points(client) == 0


def test_what_was_made_before_collections_had_an_identity_goes_on(app):
    """Its settings and its ingests' notes have none, and no canary."""
    client, engine = with_notes(app), app.extensions["search"]
    old = {"dimensions": 16, "distance": "cosine", "sparse": "bm25", "language": "english", "model": "demo/embedder"}
    engine.store().create("old", old | {"shortened": False})
    assert client.put("/api/collections/old", json={}).status_code == 200
    url = send(client, rows(40), "old")
    note = ended(client, url)
    assert (note["state"], note["identity"], points(client, "old")) == ("done", None, 40)
    found = client.post("/api/collections/old/search", json={"query": "page number 7"})
    assert found.json["hits"][0]["document"] == "page-7"
    made_again(client, "old")
    engine.ingests.go_on(note)
    with pytest.raises(store.Replaced):
        engine.store().upsert("old", None, [])


def test_many_callers_make_one_collection_and_none_is_refused(app):
    def make(_):
        return app.test_client().put("/api/collections/one", json={"sparse": "bm25"}).status_code

    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            statuses = sorted(pool.map(make, range(8)))
        assert statuses == [200] * 7 + [201]
        assert app.test_client().delete("/api/collections/one?confirm=one").status_code == 200


WRONG = [{"dimensions": "x"}, {"dimensions": True}, {"distance": None}, {"sparse": "x"}, {"language": "x"}]


def test_what_is_wished_is_checked_whether_the_collection_is_there_or_not(client):
    for name, made in (("notes", 200), ("new", 201)):
        path = f"/api/collections/{name}"
        for wrong in WRONG:
            assert client.put(path, json=wrong).status_code == 422, wrong
        assert client.put(path, json={"dimensions": None}).status_code == made
        assert client.put(path, json={"dimensions": 16.0, "sparse": "auto"}).status_code == 200
        assert client.put(path, json={"dimensions": 8}).status_code == 409


# --- what fails, and how it goes on


def test_an_error_of_our_own_costs_no_lines_and_is_tried_again(embedded, monkeypatch):
    """As in a process that ends: it can start no thread any more, and half of it is gone."""
    client, engine = with_notes(embedded), embedded.extensions["search"]
    vectors = engine.vectors
    errors = [RuntimeError("cannot schedule new futures after interpreter shutdown"), AttributeError("poll")] * 2

    def broken(*arguments, **options):
        if errors:
            raise errors.pop()
        return vectors(*arguments, **options)

    monkeypatch.setattr(engine, "vectors", broken)
    note = ended(client, send(client, rows(100)))
    assert (note["state"], note["documents"], note["message"]) == ("done", 100, None)


def test_one_that_stays_ends_the_ingest_with_its_lines_kept(embedded, monkeypatch):
    client, engine = with_notes(embedded), embedded.extensions["search"]
    with monkeypatch.context() as patch:
        patch.setattr(engine, "vectors", None)
        url = send(client, rows(10))
        note = ended(client, url)
    assert (note["state"], note["resumable"]) == ("failed", True)
    assert note["message"] == "Spark Control met an error of its own (TypeError). Its log has the details."
    assert [path.stem for path in lines_kept(embedded)] == [note["id"]]
    engine.ingests.resume()  # what another process does with it: nothing by itself
    assert (client.get(url).json["state"], len(lines_kept(embedded))) == ("failed", 1)
    assert client.post(url).json["state"] == "waiting"
    assert (ended(client, url)["state"], points(client), lines_kept(embedded)) == ("done", 10, [])


def test_an_end_of_the_stores_process_is_waited_out_at_every_step(embedded, monkeypatch):
    client, shelf = with_notes(embedded), embedded.extensions["search"].store()
    for method in ("stamps", "upsert", "tidy", "collection"):
        ask, killed = shelf._ask, []

        def once(asked, arguments, method=method, ask=ask, killed=killed):
            if asked == method and not killed and threading.current_thread().name == "ingests":
                killed.append(asked)
                os.kill(shelf._process.pid, signal.SIGKILL)
                shelf._process.wait()
                shelf._pipe.poll(5)
                shelf._process.poll = lambda: None  # found out in the middle of the call
            return ask(asked, arguments)

        monkeypatch.setattr(shelf, "_ask", once)
        note = ended(client, send(client, rows(50, method)))
        assert (note["state"], note["documents"]) == ("done", 50), (method, note)
        assert killed
        monkeypatch.setattr(shelf, "_ask", ask)
    assert points(client) == 200


def test_two_processes_do_not_work_on_one_ingest(embedded, monkeypatch):
    """The one before may be on its way out while the next one starts."""
    client, engine = with_notes(embedded), embedded.extensions["search"]
    go, puts = threading.Event(), []
    during(engine, monkeypatch, lambda: go.wait(20))
    url = send(client, rows(100))
    wait_for(lambda: client.get(url).json["state"] == "running", what="the ingest's start")
    second = ingest.Ingests(engine.writer, engine.ingests.folder)
    monkeypatch.setattr(second, "_step", lambda note: puts.append(note["line"]) or second._end(note, "done"))
    second.resume()
    go.set()
    assert ended(client, url)["documents"] == 100
    url = send(client, rows(100, "more"))
    monkeypatch.setattr(engine.ingests, "_step", lambda note: go.wait(0.01) or True)
    second.resume()
    wait_for(lambda: client.get(url).json["state"] == "running", what="the second ingest's start")
    assert puts == []
    engine.ingests.close()
    assert ended(client, url)["documents"] == 0
    assert puts == [0]
    second.close()


def test_lines_that_are_gone_are_told(embedded, monkeypatch):
    client, engine = with_notes(embedded), embedded.extensions["search"]
    during(engine, monkeypatch, lambda: lines_kept(embedded)[0].unlink())
    note = ended(client, send(client, rows(100)))
    assert note["state"] == "failed"
    assert note["message"] == "Its lines are not in the state folder any more. Send them again."


def test_a_note_that_cannot_be_written_is_waited_out(embedded, monkeypatch):
    client, ingests = with_notes(embedded), embedded.extensions["search"].ingests
    write, full = ingests._write, [1, 1, 1]

    def without_room(note):
        if note["state"] != "waiting" and full:
            full.pop()
            raise OSError(28, "No space left on device")
        write(note)

    monkeypatch.setattr(ingests, "_write", without_room)
    note = ended(client, send(client, rows(50)))
    assert (note["state"], points(client)) == ("done", 50)


def test_a_start_tidies_up_what_no_note_knows_and_keeps_what_one_does(embedded, monkeypatch):
    client, ingests = with_notes(embedded), embedded.extensions["search"].ingests
    monkeypatch.setattr(ingests, "_enqueue", lambda key: None)
    kept = send(client, rows(3)).rsplit("/", 1)[1]
    lost = send(client, rows(3)).rsplit("/", 1)[1]
    (ingests.folder / f"{lost}.json").write_text("")  # unreadable: its lines may be all that there is
    for name in ("a" * 32 + ".part", "b" * 32 + ".ndjson", "c" * 32 + ".fresh"):
        (ingests.folder / name).write_text("x")
    ingests.resume()
    assert sorted(path.name for path in ingests.folder.glob("*.*")) == sorted(
        [f"{key}.{kind}" for key in (kept, lost) for kind in ("json", "ndjson")]
    )


def test_only_the_newest_failed_ingests_keep_their_lines(embedded, monkeypatch):
    client = with_notes(embedded)
    monkeypatch.setattr(ingest, "RESUMABLE", 2)
    monkeypatch.setattr(embedded.extensions["search"], "vectors", None)
    urls = [send(client, rows(1)) for _ in range(4)]
    notes = [ended(client, url) for url in urls]
    notes = wait_for(
        lambda: (them := [client.get(url).json for url in urls]) and sum(n["resumable"] for n in them) == 2 and them,
        what="the older ones' lines to go",
    )
    assert [note["resumable"] for note in notes] == [False, False, True, True]
    assert len(lines_kept(embedded)) == 2
    assert client.delete(urls[3]).json["state"] == "cancelled"
    assert len(lines_kept(embedded)) == 1
    assert client.post(urls[0]).status_code == 409


ENDS = """
import atexit, sys, threading
from webui.gateway import store

shelf, told = store.EdgeStore(sys.argv[1]), threading.Event()
store.PATIENCE = 0.2
shelf.create("notes", {"dimensions": 2, "distance": "dot", "sparse": None})
pid = shelf._process.pid

def ask():
    try:
        while True:
            shelf.collections()
    except BaseException as error:
        print(type(error).__name__, error, flush=True)
    told.set()

atexit.unregister(shelf._exit)
atexit.register(told.wait, 20)
atexit.register(shelf._exit)
{stop}
threading.Thread(target=ask, daemon=True).start()
import time
time.sleep(0.5)
"""


@pytest.mark.parametrize("stop", ["", "import os; os.kill(pid, 19)"], ids=["it answers", "it does not answer"])
def test_who_asks_the_store_while_this_process_ends_is_told_so(stop, tmp_path):
    """And not by an error of ours: whatever the moment, nothing is taken away under the one who waits."""
    for number in range(3 if not stop else 1):
        code = ENDS.replace("{stop}", stop)
        run = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / str(number))],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.stdout.startswith("Unavailable "), run.stdout + run.stderr
        assert run.stderr == ""
