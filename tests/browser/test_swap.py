"""A person swaps the model in a browser, and sees it serve."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.conftest import PROJECT
from tests.support import wait_for
from webui.jobs import JobStore

pytestmark = pytest.mark.xdist_group("browser_swap")
SECOND = 1000
QWEN, GEMMA = "qwen3.6-35b-a3b", "gemma-4-26b-a4b"


def swap(page, name):
    """From the dashboard: click Swap, read the question, confirm. Leaves on the job's page."""
    page.locator(f"[id='swap-{name}']").click()
    dialog = page.locator("dialog[open]")
    expect(dialog).to_be_visible()
    expect(dialog.locator(".plan")).to_be_visible(timeout=90 * SECOND)
    told = dialog.inner_text()
    dialog.get_by_role("button", name=re.compile("^Swap to ")).click()
    page.wait_for_url("**/jobs/*")
    return told


def test_one_click_swaps_the_model(server, open_page):
    page = open_page(server.url)
    expect(page.get_by_role("heading", level=1)).to_contain_text("Nothing is serving")
    told = swap(page, QWEN)
    assert "Nothing: no model is serving." in told
    assert "no earlier run to go by" in told
    expect(page.get_by_role("heading", level=1)).to_contain_text("Swapping to Qwen3.6 35B")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Qwen3.6 35B serves", timeout=120 * SECOND)
    assert page.locator("table.steps tbody tr").count() >= 3
    page.get_by_role("link", name="Back to the models").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Serving Qwen3.6 35B")
    expect(page.locator(f"[id='model-{QWEN}'] .state")).to_have_text("serving")

    told = swap(page, GEMMA)
    assert "Qwen3.6 35B on spark1" in told
    assert "is put back" in told
    # The dashboard shows the run, and then what came of it, without being loaded again.
    other = open_page(server.url)
    expect(other.locator("#running")).to_contain_text("Swap to Gemma 4")
    expect(other.get_by_role("heading", level=1)).to_contain_text("Serving Gemma 4", timeout=120 * SECOND)
    expect(other.locator("#running .job")).to_have_count(0)
    expect(other.locator("#serving")).to_contain_text("All well.", timeout=90 * SECOND)
    expect(page.get_by_role("heading", level=1)).to_contain_text("Gemma 4 26B-A4B serves", timeout=120 * SECOND)


def test_a_question_is_answered_with_no(server, open_page):
    page = open_page(server.url)
    opener = page.locator(f"[id='swap-{QWEN}'], [id='stop-{QWEN}']").first
    opener.focus()
    page.keyboard.press("Enter")
    expect(page.locator("dialog[open]")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    expect(opener).to_be_focused()
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "check=" in request.url else None)
    previews = [job for job in JobStore(server.state, PROJECT).list(background=True) if job.check]
    assert previews
    wait_for(lambda: all(job.finished for job in previews), what="the end of the preview")
    # What the page hears of that end, it has heard once it has heard of a later look.
    page.get_by_role("button", name="Look again").click()
    expect(page.locator("#facts")).to_contain_text("Looking again", timeout=30 * SECOND)
    assert asked == []
    expect(page.locator("dialog")).to_have_count(0)


def test_the_page_lives_without_losing_the_place(server, open_page):
    page = open_page(server.url)
    more = page.locator(f"[id='more-{QWEN}']")
    more.locator("summary").click()
    expect(more.locator(".more")).to_be_visible()
    with page.expect_request("**/look"):
        page.get_by_role("button", name="Look again").click()
    page.locator(f"[id='more-{QWEN}-open']").focus()
    expect(page.locator("#facts")).to_contain_text("Looking again", timeout=30 * SECOND)
    expect(page.locator("#facts")).not_to_contain_text("Looking again", timeout=90 * SECOND)
    expect(more.locator(".more")).to_be_visible()
    expect(page.locator(f"[id='more-{QWEN}-open']")).to_be_focused()


def test_a_failed_swap_is_told_whole(server, open_page):
    page = open_page(server.url)
    swap(page, "demo-crash")
    heading = page.get_by_role("heading", level=1)
    expect(heading).to_contain_text("did not start", timeout=90 * SECOND)
    expect(page.locator(".kicker .state")).to_have_text("failed")
    expect(page.locator("#log-tail")).not_to_be_empty()
    page.locator("#raw summary").click()
    expect(page.locator("#raw-text")).to_contain_text("PLAY", timeout=30 * SECOND)
    dashboard = open_page(server.url)
    expect(dashboard.locator(".notices")).to_contain_text("did not start")


def test_a_phone_scrolls_one_way_only(server, open_page):
    paths = ["/", "/jobs", f"/models/{QWEN}/swap", "/nothing", "/chat", "/search"]
    for scheme in ("light", "dark"):
        page = open_page(server.url, viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
        for path in paths:
            page.goto(server.url + path)
            expect(page.locator("main")).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
            small = page.evaluate(
                "[...document.querySelectorAll('.button, button, summary, select, .top a')].filter("
                "e => e.offsetParent && e.getBoundingClientRect().height < 44).map(e => e.outerHTML)"
            )
            assert small == [], path
    open_page.complaints[:] = [text for text in open_page.complaints if "404" not in text]


def test_a_swap_works_without_javascript(server, open_page):
    page = open_page(f"{server.url}/models/{QWEN}/swap", java_script_enabled=False)
    button = page.get_by_role("button", name="Swap to Qwen3.6 35B")
    expect(button).to_be_visible(timeout=90 * SECOND)
    button.click()
    page.wait_for_url("**/jobs/*")
    wait_for(lambda: not server.ask("GET", "/health")[1]["running"], 60, "the swap's end")


def test_a_lost_server_is_said_and_comes_back(server, open_page):
    page = open_page(server.url)
    expect(page.locator("#facts")).to_contain_text("Sparks and models as of")
    server.stop()
    expect(page.locator("#lost")).to_be_visible(timeout=30 * SECOND)
    expect(page.locator("#lost")).to_contain_text("Connection lost. What you see is")
    server.start()
    expect(page.locator("#lost")).to_be_hidden(timeout=90 * SECOND)
    open_page.complaints.clear()
