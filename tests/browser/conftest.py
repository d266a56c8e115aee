"""A browser, and a real server of the pages over the simulated Sparks, each test file's own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import sync_playwright

PROJECT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = """--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync
--no-first-run"""


def free(address: str = "127.0.0.1") -> int:
    """A port that is free now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def network() -> str:
    """A 127.x.y of our own, so that tests run beside each other and beside a demo."""
    number = os.getpid() % 60000
    return f"127.{100 + number // 250 % 100}.{1 + number % 250}"


class Server:
    """`spark-control serve` over a demo of its own."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, free()
        self.url = f"http://127.0.0.1:{self.port}"
        self.state = folder / "state"
        self.environment = {
            **{key: os.environ[key] for key in ("HOME", "LANG", "TMPDIR") if key in os.environ},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_INVENTORY": "inventory/demo",
            "SPARK_DEMO_ROOT": str(folder / "demo"),
            "SPARK_DEMO_NETWORK": network(),
            "SPARK_CONTROL_STATE": str(self.state),
            "DEMO_LOAD_SECONDS": "2",
        }
        self.process: subprocess.Popen | None = None

    def playbook(self, *words: str) -> None:
        """Run ansible-playbook to its end."""
        done = subprocess.run(
            [BIN / "ansible-playbook", *words], cwd=PROJECT, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Serve, and wait until the page answers."""
        with open(self.folder / "serve.log", "ab") as log:
            self.process = subprocess.Popen(
                [BIN / "spark-control", "serve", "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=PROJECT,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/healthz").status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError((self.folder / "serve.log").read_text())

    def stop(self, number: int = signal.SIGTERM) -> float:
        """End the server. Returns the seconds that took."""
        begin = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(20)
        return time.monotonic() - begin

    def wait(self, condition, seconds: float = 60.0):
        """Wait until a condition of the page's JSON holds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if got := condition(httpx.Client(base_url=self.url)):
                return got
            time.sleep(0.2)
        raise AssertionError("it did not happen in time")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A served page over two simulated Sparks that have been looked at."""
    made = Server(tmp_path_factory.mktemp("browser"))
    made.playbook("playbooks/demo.yml", "-e", "demo_spark_state=started")
    try:
        made.start()
        made.wait(lambda client: client.get("/api/models").json()["models"])
        yield made
    finally:
        if made.process and made.process.poll() is None:
            made.stop()
        made.playbook("playbooks/demo.yml", "-e", "demo_spark_state=absent")


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
