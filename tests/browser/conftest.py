"""A browser, and a real server of the pages over the simulated Sparks, each test file's own."""

from __future__ import annotations

import os

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.support import Cluster, Server, wait_for

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = """--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync
--no-first-run"""

# Two cores share the browser, the server, Ansible and two simulated Sparks with other tests.
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A served page over two simulated Sparks that have been looked at; their models load in two seconds."""
    # The process number keeps the addresses of tests that run beside each other apart.
    network = f"127.{200 + os.getpid() // 250 % 50}.{1 + os.getpid() % 250}"
    cluster = Cluster(tmp_path_factory.mktemp("browser") / "demo", network)
    laid = cluster.run("demo", demo_spark_load_seconds=2)
    assert laid.code == 0, laid.output
    try:
        made = Server(cluster)
        wait_for(lambda: made.ask("GET", "/api/models")[1].get("models"), 120, "the first look at the cluster")
        yield made
        if made.process.poll() is None:
            made.stop()
    finally:
        gone = cluster.run("demo", demo_spark_state="absent")
        assert gone.code == 0, gone.output


@pytest.fixture(scope="session")
def browser():
    """Debian's chromium, without a window."""
    if not os.path.exists(CHROMIUM):
        message = "chromium is missing: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS.split())
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser):
    """Opens pages that fail the test on a console error, a script error or a violation of the policy."""
    contexts, complaints = [], []

    def open_one(url: str, **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
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
