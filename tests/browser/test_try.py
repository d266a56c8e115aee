"""A person chats with what serves, and puts files into a collection and finds them; the lines shown do the same."""

from __future__ import annotations

import json
import subprocess

import pytest
from playwright.sync_api import expect

from tests.support import wait_for

pytestmark = pytest.mark.xdist_group("browser_try")
SECOND = 1000
SLOW = 120 * SECOND


@pytest.fixture(scope="module")
def serving(server):
    """The server, with demo-small serving."""
    started = server.ask("POST", "/api/swap", {"model": "demo-small"})[1]
    assert server.ended(started["job_id"])["status"] == "successful"
    wait_for(lambda: server.ask("GET", "/api/models")[1]["serving"], 60, "the page's knowledge of it")
    return server


def run(page, name):
    """What the line for a terminal prints."""
    page.locator(f"#{name}-road-open").click()
    line = page.locator(f"#{name}-line")
    expect(line).to_be_visible()
    return subprocess.run(["bash", "-c", line.inner_text()], capture_output=True, text=True, timeout=60, check=True)


def test_a_chat_streams_is_stopped_and_goes_on(serving, open_page):
    page = open_page(f"{serving.url}/chat")
    expect(page.locator("main")).to_contain_text("with Demo: small")
    page.get_by_label("Your message").fill("Hello <b>there</b>")
    page.get_by_label("Your message").press("Enter")
    first = page.locator("#turn-1")
    expect(first.locator(".asked")).to_have_text("Hello <b>there</b>")
    page.evaluate(
        """() => {
            window.lengths = new Set();
            new MutationObserver(() => window.lengths.add(document.querySelector("#said-1").textContent.length))
                .observe(document.querySelector("#turns"), {childList: true, subtree: true, characterData: true});
        }"""
    )
    expect(first.locator(".body.done")).to_be_visible()
    expect(first.locator(".said")).to_contain_text("You said: Hello <b>there</b> I am a simulated model")
    expect(first).to_contain_text("tok/s")
    # It grew, in place, while it was watched.
    lengths = json.loads(page.evaluate("JSON.stringify([...window.lengths])"))
    assert len(lengths) > 3
    assert page.url != f"{serving.url}/chat"

    question = page.get_by_label("Your message")
    expect(question).to_have_value("")
    question.fill("word " * 400)
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#said-2")).to_contain_text("word word")
    page.locator("#stop-2").click()
    expect(page.locator("#turn-2")).to_contain_text("stopped")
    assert len(page.locator("#said-2").inner_text()) < 2000

    page.reload()
    expect(page.locator("#turn-1 .said")).to_contain_text("You said: Hello")
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator("#stop-2")).to_be_visible()
    page.locator("#stop-2").click()
    assert run(page, "chat").stdout.endswith("data: [DONE]\n\n")
    page.get_by_role("link", name="New conversation").click()
    expect(page.locator(".turn")).to_have_count(0)


def test_files_are_put_into_a_collection_and_found(serving, open_page):
    page = open_page(f"{serving.url}/search")
    expect(page.locator("main")).to_contain_text("There is no collection yet.")
    page.get_by_label("New collection", exact=True).fill("kitchen")
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#collections")).to_contain_text("kitchen 0 parts")
    rows = [{"id": f"row-{n}", "text": f"Row {n} tells of the cluster."} for n in range(600)]
    page.get_by_label("Text files, or JSON lines").set_input_files(
        [
            {"name": "cats.txt", "mimeType": "text/plain", "buffer": b"The cat sleeps on the mat."},
            {"name": "rows.jsonl", "mimeType": "", "buffer": "\n".join(map(json.dumps, rows)).encode()},
        ]
    )
    page.get_by_role("button", name="Add to kitchen").click()
    expect(page.locator("#ingests")).to_contain_text("601 documents: 601 parts added", timeout=SLOW)
    expect(page.locator("#collections")).to_contain_text("kitchen 601 parts")

    page.get_by_role("searchbox").fill("Where does the cat sleep?")
    page.get_by_role("searchbox").press("Enter")
    first = page.locator(".hits li").first
    expect(first).to_contain_text("cats.txt")
    expect(first.locator("mark").first).to_have_text("The")
    hits = json.loads(run(page, "search").stdout)["hits"]
    shown = [text.split("\n")[0] for text in page.locator(".hits li").all_inner_texts()]
    assert [hit["metadata"].get("file") or hit["document"] for hit in hits] == shown
    page.get_by_label("and rerank").check()
    expect(page.locator("#search-line")).to_contain_text('"rerank": true')

    page.locator("#forget").click()
    dialog = page.locator("dialog[open]")
    expect(dialog).to_contain_text("the 601 parts of documents in it. It cannot be undone.")
    dialog.get_by_role("button", name="Delete 601 parts").click()
    expect(page.locator("main")).to_contain_text("There is no collection yet.")
    assert serving.ask("GET", "/api/collections")[1]["collections"] == []


def test_a_refusal_opens_and_what_was_written_stays(serving, open_page):
    page = open_page(f"{serving.url}/search")
    page.get_by_label("New collection", exact=True).fill("photos")
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#collections")).to_contain_text("photos")
    page.get_by_label("Text files, or JSON lines").set_input_files(
        [{"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8\xff\x00"}]
    )
    page.get_by_role("button", name="Add to photos").click()
    expect(page.locator("dialog[open]")).to_contain_text("photo.jpg is no plain text.")
    page.locator("dialog[open] #leave").click()
    expect(page.locator("dialog")).to_have_count(0)
    expect(page.locator("#files")).to_be_visible()
    open_page.complaints[:] = [text for text in open_page.complaints if "status of 422" not in text]
