"""How long a swap takes over a real sshd and a real docker, less the load: `python tests/bench/bench_lab.py`."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.conftest import PROJECT
from tests.lab.conftest import LabCluster, freshen
from tests.lab.lab import Lab
from tests.support import first_token

ROUNDS = 3
LOAD = 0.5


def timed(cluster: LabCluster, playbook: str, **variables) -> float:
    """Seconds that a playbook took; it has to succeed."""
    began = time.monotonic()
    run = cluster.run(playbook, **variables)
    assert run.code == 0, run.output
    return time.monotonic() - began


def swap(cluster: LabCluster, model: str, **variables) -> float:
    """Seconds from the start of swap.yml to the first token, less the load. A running model answers to another name."""
    heard: list[float] = []
    watcher = threading.Thread(target=lambda: heard.append(first_token(cluster.lab.head, model)))
    began = time.monotonic()
    watcher.start()
    timed(cluster, "swap", model=model, **variables)
    watcher.join()
    return heard[0] - began - LOAD


def measure(cluster: LabCluster) -> dict[str, list[float]]:
    """{what: seconds of each round}."""
    slow = cluster.slow(100)
    rows: dict[str, list[float]] = {}
    cluster.behave("demo/loads-slowly", "ok", LOAD)
    swap(cluster, "demo-slow")
    for number in range(ROUNDS + 1):
        found = {
            "swap, one Spark, to the first token": swap(cluster, "demo-small"),
            "the same again": timed(cluster, "swap", model="demo-small"),
            "swap, two Sparks, to the first token": swap(cluster, "demo-pair"),
            "stop, two Sparks": timed(cluster, "stop_model"),
            "swap to one Spark, nothing to stop": swap(cluster, "demo-small"),
            "stop, one Spark": timed(cluster, "stop_model"),
            "with 100 ms of round trip: nothing to stop": swap(cluster, "demo-slow", **slow),
            "with 100 ms of round trip: swap, one Spark": swap(cluster, "demo-small", **slow),
            "swap back": swap(cluster, "demo-slow"),
        }
        for name, seconds in found.items() if number else ():  # the first opens the connections
            rows.setdefault(name, []).append(seconds)
    return rows


def main() -> None:
    """Print the table."""
    lab = Lab(name="test", network="172.31.78", state=PROJECT / "var/lab-test", load_seconds=LOAD)
    with lab.held():
        try:
            lab.up()
            lab.connect()
            cluster = LabCluster(lab.state, lab.network, lab)
            freshen(cluster)
            rows = measure(cluster)
        finally:
            lab.down()
    print(f"\nIn the lab, seconds less the load ({ROUNDS} rounds)\n")
    for name, values in rows.items():
        print(f"  {name:46} {statistics.median(values):6.2f}   {min(values):5.2f} … {max(values):5.2f}")


if __name__ == "__main__":
    main()
