"""A browser, and a real server of the pages over the simulated Sparks, each test file's own."""

from __future__ import annotations

import os
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.support import Server, wait_for

# The first one that there is: the same engine, and the shell alone starts faster and draws no window's frame.
CHROMIUM = ("chromium-headless-shell", "chromium")
ARGUMENTS = """--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync
--no-first-run"""

# Two cores share the browser, the server, Ansible and two simulated Sparks with other tests.
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def server(simulation, tmp_path_factory):
    """A served page over two simulated Sparks that have been looked at; their models load in two seconds."""
    with simulation.lent(tmp_path_factory.mktemp("browser")) as cluster:
        cluster.load_seconds(2)
        made = Server(cluster)
        wait_for(lambda: made.ask("GET", "/api/models")[1].get("models"), 120, "the first look at the cluster")
        yield made
        if made.process.poll() is None:
            made.stop()


@pytest.fixture(scope="session")
def browser():
    """Debian's chromium, without a window."""
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if not program:
        message = f"There is no chromium: apt-get install {CHROMIUM[0]}"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=ARGUMENTS.split())
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser):
    """Opens pages that fail the test on a console error, a script error or a violation of the policy."""
    contexts, complaints = [], []

    def open_one(url: str, **options):
        # Without a GPU, a mark that turns takes a fifth of a core.
        usual = {"viewport": {"width": 1200, "height": 900}, "reduced_motion": "reduce"}
        context = browser.new_context(**usual | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        return page

    open_one.complaints = complaints
    yield open_one
    for context in contexts:
        context.close()
    assert complaints == []
