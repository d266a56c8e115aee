"""The search page: a collection made, filled from files, searched and deleted; every refusal in plain words."""

from __future__ import annotations

import html
import io
import json
import re

import pytest

from tests.embedders import inventory, serving
from tests.support import wait_for
from webui.app import create_app
from webui.gateway import ingest
from webui.pages import search

HTMX = {"HX-Request": "true", "Accept": "text/html"}
FILES = {
    "cats.txt": b"Cats sleep on the mat all day and hunt mice at night.",
    "Büro Notizen.md": "\ufeffDie Katzen <b>schlafen</b> im Büro.".encode(),
    "rows.jsonl": b'{"id": "valve", "text": "Order ZX81-77 for the blue valve.", "metadata": {"year": 2024}}\nnot json',
}


@pytest.fixture(scope="module")
def ports():
    with serving("tei:embed", "tei:rerank", dimensions=64) as found:
        yield dict(zip(("embeddings", "rerank"), found, strict=True))


@pytest.fixture
def app(ports, tmp_path):
    made = create_app({"STATE_DIR": tmp_path / "state", "INVENTORY": str(inventory(tmp_path / "hosts.yml", **ports))})
    yield made
    made.extensions["search"].close()


@pytest.fixture
def client(app):
    """With an empty collection `notes`."""
    client = app.test_client()
    made = client.post("/search", data={"name": "notes"})
    assert (made.status_code, made.headers["Location"]) == (303, "/search?collection=notes")
    return client


def words(response):
    """What a person reads."""
    text = re.sub(r"<[^>]+>", " ", response.get_data(as_text=True))
    return " ".join(html.unescape(text).split())


def put(client, files, **headers):
    """Upload files to `notes`."""
    given = [(io.BytesIO(data), name) for name, data in files.items()]
    return client.post(
        "/search/notes/documents", data={"files": given}, content_type="multipart/form-data", headers=headers
    )


def done(client):
    """The uploads' part of the page, once all have ended."""

    def settled():
        part = client.get("/search/notes/ingests", headers=HTMX)
        return "hx-trigger" not in part.get_data(as_text=True) and part

    return wait_for(settled, what="the end of the uploads")


def line(response, name):
    """A line for a terminal, as it would be copied."""
    return html.unescape(re.search(rf'<pre id="{name}"[^>]*>(.*?)</pre>', response.get_data(as_text=True), re.S)[1])


def test_nothing_is_there_yet(app):
    page = app.test_client().get("/search")
    assert page.status_code == 200
    assert 'href="/search"' in page.get_data(as_text=True)
    assert 'href="/chat"' not in page.get_data(as_text=True)  # nothing serves chat here
    assert "There is no collection yet." in words(page)
    assert line(page, "make-line").endswith("""-d '{"name": "notes"}'""")


def test_files_are_put_in_and_found(client):
    part = put(client, FILES, **HTMX)
    assert part.status_code == 200, words(part)
    told = done(client)
    assert "added 3 documents: 3 parts added" in words(told)
    assert "1 line could not be taken: line 4: This is not JSON." in words(told)
    assert "notes 3 parts" in words(told)

    found = client.get("/search?collection=notes&q=sleeping+cats", headers=HTMX | {"HX-Target": "found"})
    assert found.get_data(as_text=True).lstrip().startswith('<p class="why">3 parts found in')
    assert "<mark>Cats</mark> sleep" in found.get_data(as_text=True)
    assert words(found).index("cats.txt") < words(found).index("valve")
    assert "Büro Notizen.md" in words(found)
    assert "Katzen &lt;b&gt;schlafen&lt;/b&gt;" in found.get_data(as_text=True)
    assert "year: 2024" in words(found)

    again = put(client, {"cats.txt": FILES["cats.txt"]}, **HTMX)
    assert again.status_code == 200
    assert "1 document: 0 parts added, 1 unchanged" in words(done(client))


def test_the_way_of_searching_is_the_callers(client):
    put(client, FILES)
    done(client)
    by_words = client.get("/search?collection=notes&q=ZX81-77&mode=sparse&rerank=1")
    assert "1 part found" in words(by_words)
    assert '<option value="sparse" selected>' in by_words.get_data(as_text=True)
    asked = json.loads(line(by_words, "search-line").split(" -d ", 1)[1].strip("'"))
    assert asked == {"query": "ZX81-77", "mode": "sparse", "rerank": True}
    answer = client.post("/api/collections/notes/search", json=asked)
    assert [hit["document"] for hit in answer.json["hits"]] == ["valve"]
    assert "Nothing found" in words(client.get("/search?collection=notes&q=unheard&mode=sparse"))


def test_without_a_script_the_page_does_the_same(client):
    answer = put(client, {"cats.txt": FILES["cats.txt"]})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/search?collection=notes")
    done(client)
    assert "cats.txt" in words(client.get("/search?collection=notes&q=cats"))


@pytest.mark.parametrize(
    ("files", "status", "said"),
    [
        ({"photo.jpg": b"\xff\xd8\xff\x00"}, 422, "photo.jpg is no plain text. Save it as text (UTF-8) first."),
        ({"zero.txt": b"a\0b"}, 422, "zero.txt is no plain text."),
        ({"empty.txt": b"  \n"}, 422, "empty.txt: text: a document needs one."),
        ({}, 422, "Choose a file first."),
        ({"good.txt": b"words", "bad.txt": b"\xff\xfe"}, 422, "bad.txt is no plain text."),
    ],
)
def test_a_file_that_cannot_be_taken_is_named_and_nothing_is_put_in(client, files, status, said):
    answer = put(client, files, **HTMX)
    assert answer.status_code == status
    assert said in words(answer)
    # A refusal opens as a dialog, and what it was to replace stays.
    assert (answer.headers["HX-Retarget"], answer.headers["HX-Reselect"]) == ("#dialog", "dialog")
    assert client.get("/api/collections/notes/ingests").json["ingests"] == []


def test_a_text_that_is_too_long_for_a_document_is_named(client):
    answer = put(client, {"long.txt": b"word " * (ingest.TEXT_LIMIT // 5 + 1)})
    assert (answer.status_code, "long.txt: text: at most 5,000,000 characters." in words(answer)) == (422, True)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "x" * 65, "<b>"])
def test_a_collections_name_is_checked(client, name):
    answer = client.post("/search", data={"name": name}, headers=HTMX)
    assert answer.status_code == 422
    assert "A collection's name is" in words(answer)


def test_making_it_twice_and_what_is_not_there_are_told(client):
    assert "There is a collection notes already." in words(client.post("/search", data={"name": "notes"}))
    assert "There is no collection other." in words(client.get("/search?collection=other"))
    assert client.get("/search/other/delete", headers=HTMX).status_code == 404
    assert client.post("/search/other/documents", data={}, headers=HTMX).status_code == 404
    assert client.post(f"/search/notes/ingests/{'0' * 32}/cancel").status_code == 404


def test_a_collection_is_deleted_after_a_question_that_says_what_goes(client):
    put(client, FILES)
    done(client)
    question = client.get("/search/notes/delete", headers=HTMX)
    assert "deletes the collection notes and the 3 parts of documents in it. It cannot be undone." in words(question)
    assert line(question, "road-line") == "curl -X DELETE 'http://localhost/api/collections/notes?confirm=notes'"
    gone = client.post("/search/notes/delete", headers=HTMX)
    assert (gone.status_code, gone.headers["HX-Redirect"]) == (204, "/search")
    assert client.get("/api/collections").json["collections"] == []


def test_an_upload_that_failed_goes_on_when_it_is_told_to(client, app, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(app.extensions["search"], "vectors", None)
        patch.setattr(ingest, "WAITS", (0.01,))
        put(client, {"cats.txt": FILES["cats.txt"]})
        told = done(client)
    assert "Spark Control met an error of its own (TypeError). Its log has the details." in words(told)
    [address] = re.findall(r'hx-post="(/search/notes/ingests/\w+/go-on)"', told.get_data(as_text=True))
    assert client.post(address, headers=HTMX).status_code == 200
    told = done(client)
    assert "added 1 document: 1 part added" in words(told)
    assert "go-on" not in told.get_data(as_text=True)
    assert client.post(address).status_code == 303  # without a script, and nothing to do any more
    assert client.post(f"/search/notes/ingests/{'0' * 32}/go-on").status_code == 404


def test_an_embedding_server_that_is_away_is_told(client, tmp_path, app):
    inventory(tmp_path / "hosts.yml", embeddings=9)
    app.extensions["gateway"].cluster._inventory_checked = 0
    found = client.get("/search?collection=notes&q=cats", headers=HTMX | {"HX-Target": "found"})
    assert found.status_code == 200
    assert "not possible now" in words(found)
    assert "does not answer" in words(found)
    made = client.post("/search", data={"name": "more"}, headers=HTMX)
    assert (made.status_code, "does not answer" in words(made)) == (503, True)


def test_an_id_for_a_file_is_one_and_tells_files_apart():
    assert search.document_id("notes.txt") == "notes.txt"
    names = ["a b.txt", "a_b.txt", "a?b.txt", "Büro.md", "-x", "../../etc/passwd", "é" * 300, "\udc80"]
    made = [search.document_id(name) for name in names]
    assert len(set(made)) == len(names)
    assert all(ingest.DOCUMENT.fullmatch(name) for name in made)


def test_a_line_for_a_terminal_names_the_token_and_does_not_tell_it(ports, tmp_path):
    secret = tmp_path / "token"
    secret.write_text("a-token-of-more-than-16")
    secret.chmod(0o600)
    places = {"STATE_DIR": tmp_path / "state", "INVENTORY": str(inventory(tmp_path / "hosts.yml", **ports))}
    client = create_app(places | {"TOKEN_FILE": str(secret)}).test_client()
    page = client.get("/search", headers={"Authorization": "Bearer a-token-of-more-than-16"})
    assert '-H "Authorization: Bearer $SPARK_CONTROL_TOKEN"' in line(page, "make-line")
    assert "a-token-of-more-than-16" not in page.get_data(as_text=True)
