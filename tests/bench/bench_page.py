"""How quick the page is: a dashboard's render, an event's way to the page, and what an idle server costs."""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support import BIN, Cluster, Server, wait_for

IDLE = 60
PROBE_EVERY = 180  # webui/watch.py, while a dashboard is open
CHROMIUM = "/usr/bin/chromium"
WATCH = """() => { window.seen = {};
  const note = () => document.querySelectorAll("table.steps th[scope=row]").forEach((row) => {
    const name = row.textContent; if (!(name in window.seen)) window.seen[name] = Date.now() / 1000; });
  new MutationObserver(note).observe(document.querySelector("#steps"), {childList: true, subtree: true}); }"""


def render(server: Server) -> list[float]:
    """Seconds of 50 whole dashboards over HTTP, the first left out."""
    times = []
    for _ in range(51):
        began = time.perf_counter()
        urllib.request.urlopen(server.url, timeout=10).read()
        times.append(time.perf_counter() - began)
    return times[1:]


def written(server: Server, job: str) -> dict[str, float]:
    """When each task's start was written: its event file's own time, by task name."""
    found: dict[str, float] = {}
    folder = server.state / "jobs" / job / "artifacts/run/job_events"
    for file in sorted(folder.glob("[0-9]*-*.json"), key=lambda path: int(path.name.split("-")[0])):
        event = json.loads(file.read_text())
        if event["event"] == "playbook_on_task_start":
            found.setdefault(event["event_data"]["name"].split(" : ")[-1], file.stat().st_mtime)
    return found


def on_the_page(server: Server) -> list[float]:
    """Seconds from an event's file to its row in a real browser's page, over one swap."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        page = browser.new_page()
        job = server.ask("POST", "/api/swap", {"model": "demo-small"})[1]["job_id"]
        page.goto(f"{server.url}/jobs/{job}")
        page.evaluate(WATCH)
        opened = time.time()
        server.ended(job)
        page.wait_for_timeout(1000)
        seen = page.evaluate("window.seen")
        browser.close()
    wrote = written(server, job)
    return [seen[name] - wrote[name] for name in seen if name in wrote and wrote[name] > opened]


def idle(server: Server) -> float:
    """The server's share of a core over a minute with one open dashboard, by /proc of its processes; no probe runs."""
    stream = urllib.request.urlopen(f"{server.url}/events", timeout=90)
    before = cpu(server.process.pid)
    time.sleep(IDLE)
    share = (cpu(server.process.pid) - before) / IDLE
    stream.close()
    return share


def cpu(pid: int) -> float:
    """CPU seconds of a process and of its living children (gunicorn's worker)."""
    ticks = os.sysconf("SC_CLK_TCK")
    pids = [pid, *map(int, re.findall(r"\d+", Path(f"/proc/{pid}/task/{pid}/children").read_text()))]
    fields = [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in pids]
    return sum(int(row[11]) + int(row[12]) for row in fields) / ticks


def probe(cluster: Cluster) -> float:
    """CPU seconds of one look at the cluster, supervisor and all."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [BIN / "spark-control", "run", "probe", "--background"]
    subprocess.run(command, env=cluster.environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder) / "demo", "127.99.2")
        laid = cluster.run("demo", demo_spark_load_seconds=2)
        assert laid.code == 0, laid.output
        server = Server(cluster)
        try:
            wait_for(lambda: server.ask("GET", "/api/models")[1].get("models"), 30, "the first look")
            rendered = render(server)
            late = on_the_page(server)
            time.sleep(10)  # the look that follows the swap
            share, look = idle(server), probe(cluster)
        finally:
            server.stop()
            cluster.run("demo", demo_spark_state="absent")
    print("\nThe page\n")
    print(
        f"  dashboard over HTTP: median {statistics.median(rendered) * 1000:.1f} ms, slowest of 50"
        f" {max(rendered) * 1000:.1f} ms    bar: 100 ms"
    )
    print(
        f"  event written to event on the page: median {statistics.median(late):.2f} s, slowest of {len(late)}"
        f" {max(late):.2f} s    bar: 0.5 s"
    )
    print(
        f"  idle with one open dashboard: {share:.1%} of a core; a look every {PROBE_EVERY} s costs {look:.1f} CPU s,"
        f" {look / PROBE_EVERY:.1%}; together {share + look / PROBE_EVERY:.1%}    bar: 5 %\n"
    )


if __name__ == "__main__":
    main()
