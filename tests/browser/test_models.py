"""A person sets a model up, serves it, downloads and copies another, and deletes one: all on the page."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.xdist_group("browser_models")
SECOND = 1000
SLOW = 120 * SECOND


def row(page, name):
    """A model's row on the dashboard."""
    return page.locator(f"[id='model-{name}']")


def confirmed(page, verb):
    """Answer the open question with yes, and end on the job's page with the job's end."""
    dialog = page.locator("dialog[open]")
    expect(dialog.locator(".plan")).to_be_visible(timeout=SLOW)
    told = dialog.inner_text()
    dialog.get_by_role("button", name=verb, exact=True).click()
    page.wait_for_url("**/jobs/*")
    return told


def ended(page, words):
    """Wait until the job's headline says so, and go back."""
    expect(page.get_by_role("heading", level=1)).to_contain_text(words, timeout=SLOW)
    page.goto(page.url.split("/jobs/")[0])


def test_a_model_without_a_recipe_is_set_up_served_and_after_all_deleted(server, open_page):
    page = open_page(server.url)
    mine = row(page, "demo--fine-tuned")
    expect(mine.locator(".state")).to_have_text("needs set-up")
    mine.get_by_role("link", name="Set up").click()
    expect(page.locator("#setup-save")).to_be_visible(timeout=SLOW)
    expect(page.locator("#setup")).to_contain_text("config.json: max_position_embeddings")
    page.locator("#setup-name").fill("tuned")
    page.locator("#setup-shown").fill("My tune")
    page.get_by_label("--max-num-seqs", exact=True).uncheck()
    page.get_by_label("Value of --max-model-len").fill("8192")
    page.locator("#setup-save").click()
    told = confirmed(page, "Save tuned")
    assert "max_model_len: 8192" in told
    assert "--max-num-seqs" not in told
    ended(page, "tuned is saved as")

    mine = row(page, "tuned")
    expect(mine).to_contain_text("My tune", timeout=SLOW)
    mine.get_by_role("link", name="Swap").click()
    confirmed(page, "Swap to My tune")
    ended(page, "My tune serves on spark1")
    expect(row(page, "tuned").locator(".state")).to_have_text("serving", timeout=SLOW)
    assert server.cluster.chat("tuned")

    # What serves cannot be deleted, and is not offered to be.
    row(page, "tuned").locator("summary").click()
    expect(row(page, "tuned").get_by_role("link", name="Delete")).to_have_count(0)
    status, said = server.ask("POST", "/api/models/delete", {"repo": "demo/fine-tuned"})
    assert (status, said["errors"][0]["field"]) == (409, "repo")
    row(page, "tuned").get_by_role("link", name="Stop").click()
    confirmed(page, "Stop My tune")
    ended(page, "My tune is stopped")

    folder = server.cluster.root / "spark1/home/.cache/huggingface/hub/models--demo--fine-tuned"
    assert folder.exists()
    expect(row(page, "tuned").locator(".state")).to_have_text("fits", timeout=SLOW)
    if not row(page, "tuned").get_by_role("link", name="Delete").is_visible():
        row(page, "tuned").locator("summary").click()
    row(page, "tuned").get_by_role("link", name="Delete").click()
    told = confirmed(page, "Delete 128 MB")
    assert "64 MB on spark1." in told
    assert "It was suggested from these files and goes with them." in told
    ended(page, "demo/fine-tuned is deleted")
    assert not folder.exists()
    deleted = server.ask("GET", "/api/jobs?operation=delete_weights&limit=1")[1]["jobs"][0]["job_id"]
    assert server.job(deleted)["result"]["bytes"] >= 128 << 20
    expect(row(page, "tuned")).to_have_count(0, timeout=SLOW)


def test_a_model_is_downloaded_with_a_moving_bar_and_copied_to_the_second_spark(server, open_page):
    page = open_page(server.url)
    expect(row(page, "demo-hub").locator(".state")).to_have_text("not on disk")
    row(page, "demo-hub").get_by_role("link", name="Download").click()
    told = confirmed(page, "Download demo/on-the-hub")
    assert "96 MB" in told
    seen = set()
    bar = page.locator("#headline progress")
    page.wait_for_function(
        """() => {
            const bar = document.querySelector("#headline progress[value]");
            window.seen = window.seen || new Set();
            if (bar) window.seen.add(bar.value);
            return window.seen.size >= 3;
        }""",
        polling=100,
        timeout=SLOW,
    )
    seen = json.loads(page.evaluate("JSON.stringify([...window.seen])"))
    assert seen == sorted(seen)
    expect(page.locator("#headline")).to_contain_text("of 96 MB")
    expect(bar).to_have_count(0, timeout=SLOW)
    ended(page, "demo/on-the-hub")

    mine = row(page, "demo-hub")
    expect(mine).to_contain_text("on spark1", timeout=SLOW)
    expect(mine.locator(".state")).to_have_text("fits")
    mine.locator("summary").click()
    mine.get_by_role("link", name="Copy").click()
    told = confirmed(page, "Copy 96 MB")
    assert "from spark1 to spark2" in told
    ended(page, "demo/on-the-hub")
    expect(row(page, "demo-hub")).to_contain_text("on spark1 and spark2", timeout=SLOW)


def test_a_gated_model_says_what_it_wants_and_a_wrong_name_is_named(server, open_page):
    page = open_page(server.url)
    page.locator("#fetch-repo").fill("demo/gated")
    page.locator("#fetch").click()
    expect(page.locator("dialog[open]")).to_contain_text("demo/gated is gated: ask for access", timeout=SLOW)
    expect(page.locator("dialog[open] #do-it")).to_have_count(0)
    page.keyboard.press("Escape")
    status, said = server.ask("POST", "/api/models/download", {"repo": "gated"})
    assert (status, said["errors"][0]["field"]) == (422, "repo")
