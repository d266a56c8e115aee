"""How much a swap costs beyond the model's own loading, beside the same swap done by hand with the launcher.

Both sides run in the same minutes over the same simulated Sparks. Overhead = click (or first command) to first
streamed token, less the simulated load time. By hand means what a person does: `launch-cluster.sh stop`, then
`launch-cluster.sh --solo -d exec vllm serve …`, then asking until a token comes.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.conftest import PROJECT
from tests.support import Cluster, Server, first_token, wait_for
from webui.jobs import JobStore

ROUNDS = 5
LOAD = 2.0
MODELS = ["qwen3.6-35b-a3b", "gemma-4-26b-a4b"]


def by_click(server: Server, model: str, served: str) -> tuple[float, float]:
    """One swap over the API: seconds to the first token, and to the job's end, from the click."""
    tokens = []
    watcher = threading.Thread(target=lambda: tokens.append(first_token(server.cluster.head, served)))
    clicked = time.monotonic()
    status, accepted = server.ask("POST", "/api/swap", {"model": model})
    assert status == 202, accepted
    # The old model answers to another name, so what the watcher hears can only be the new one.
    watcher.start()
    job = server.ended(accepted["job_id"])
    ended = time.monotonic()
    assert job["status"] == "successful", job["result"]
    watcher.join()
    return tokens[0] - clicked, ended - clicked


def by_hand(cluster: Cluster, argv: list[str], served: str) -> float:
    """The same swap with the launcher's own commands: seconds to the first token."""
    launcher = str(cluster.root / "spark1/home/spark-vllm-docker/launch-cluster.sh")
    began = time.monotonic()
    stopped = cluster.host("spark1", launcher, "--solo", "stop")
    assert stopped.returncode == 0, stopped.stdout
    started = cluster.host("spark1", launcher, "--solo", "-t", "vllm-node", "-d", "exec", *argv)
    assert started.returncode == 0, started.stdout
    return first_token(cluster.head, served) - began


def quiet(cluster: Cluster) -> None:
    """Wait until the look at the cluster that follows each change is over; nobody clicks twice in a second."""
    store = JobStore(cluster.environment["SPARK_CONTROL_STATE"], PROJECT)
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        if any(not job.finished for job in store.list(background=True)):
            deadline = time.monotonic() + 0.5
        time.sleep(0.1)


def plan(cluster: Cluster, model: str) -> dict:
    """The argv that a swap to the model launches, and the name it serves under."""
    preview = cluster.run("swap", "--check", model=model)
    record = cluster.root / "spark1/home/.spark-control/serving.json"
    assert preview.code == 0, preview.output
    return json.loads(record.read_text())["plan"]


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder) / "demo", "127.99.1")
        laid = cluster.run("demo", demo_spark_load_seconds=LOAD)
        assert laid.code == 0, laid.output
        server = Server(cluster)
        try:
            listed = wait_for(lambda: server.ask("GET", "/api/models")[1].get("models"), 30, "the first look")
            served = {row["name"]: row["served_name"] for row in listed}
            clicks, ends, hands, plans = [], [], [], {}
            for turn in range(ROUNDS + 1):
                model = MODELS[turn % 2]
                quiet(cluster)
                clicked, ended = by_click(server, model, served[model])
                plans[model] = plan(cluster, model)
                if turn:  # the first fills the caches
                    clicks.append(clicked - LOAD)
                    ends.append(ended - LOAD)
            again = []
            for _ in range(ROUNDS):
                quiet(cluster)
                began = time.monotonic()
                job = server.ended(server.ask("POST", "/api/swap", {"model": model})[1]["job_id"])
                assert job["result"]["changed"] is False
                again.append(time.monotonic() - began)
            for turn in range(2):
                model = MODELS[(ROUNDS + 1 + turn) % 2]
                hands.append(by_hand(cluster, plans[model]["argv"], served[model]) - LOAD)
        finally:
            server.stop()
            cluster.run("demo", demo_spark_state="absent")
    show(clicks, ends, again, hands)


def show(clicks: list[float], ends: list[float], again: list[float], hands: list[float]) -> None:
    """Medians and ranges in seconds, and the ratios that the bars are about."""
    rows = [
        ("swap, click to first token, less load", clicks),
        ("swap, click to the job's end, less load", ends),
        ("the same swap again (nothing to change)", again),
        ("by hand: stop, exec -d, ask, less load", hands),
    ]
    print(f"\nSwap overhead, seconds (simulated load {LOAD:.0f} s)\n")
    print(f"  {'':42} {'runs':>4} {'median':>7} {'least':>7} {'most':>7}")
    for name, values in rows:
        print(f"  {name:42} {len(values):4} {statistics.median(values):7.2f} {min(values):7.2f} {max(values):7.2f}")
    click, hand, second = (statistics.median(values) for values in (clicks, hands, again))
    print(f"\n  swap / by hand: {click / hand:.2f}    second run / swap: {second / click:.2f}    bar: 4 s, aim 3 s\n")


if __name__ == "__main__":
    main()
