"""The same swaps as on the simulated Sparks, over a real sshd and a real docker."""

from __future__ import annotations

import pytest

from tests.lab.conftest import patiently
from tests.lab.lab import SHAPES
from tests.support import Server

# Each file is a group of its own: whichever worker is free takes it, with a lab of its own.
pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("swap")]

each_launcher = pytest.mark.parametrize("launcher", SHAPES, indirect=True)


def in_front(cluster) -> bool:
    """Whether a launcher stays in front of its model on the head."""
    return "launch-cluster.sh" in cluster.lab.root("spark1", "ps", "-eo", "args")


@each_launcher
def test_a_swap_serves_again_changes_nothing_and_stops(cluster, launcher):
    first = cluster.swap("demo-small")
    assert (first.code, first.result["outcome"]) == (0, "serving"), first.output
    assert cluster.chat("demo-small")
    # January's stops the container's name everywhere when its model has gone, so the stop has to end it.
    assert in_front(cluster) == (launcher == "january")
    again = cluster.swap("demo-small")
    assert (again.code, again.result["outcome"], again.result["changed"]) == (0, "unchanged", False), again.output
    assert {host: row["changed"] for host, row in again.recap.items()} == {"spark1": 0, "spark2": 0}
    stopped = cluster.run("stop_model")
    assert (stopped.code, stopped.result["message"]) == (0, "Demo: small is stopped."), stopped.output
    assert cluster.containers("spark1") == []
    assert not in_front(cluster)
    assert cluster.run("stop_model").result["outcome"] == "unchanged"


@each_launcher
def test_a_model_over_two_sparks_takes_the_place_of_one_that_crashes_and_goes_back_to_one(cluster, launcher):
    pair = cluster.swap("demo-pair")
    assert (pair.code, pair.result["outcome"]) == (0, "serving"), pair.output
    assert pair.result["serving"]["nodes"] == ["spark1", "spark2"]
    assert cluster.containers("spark1") == cluster.containers("spark2") == ["vllm_node"]
    assert cluster.chat("demo-pair")
    failed = cluster.swap("demo-crash")
    assert failed.code != 0
    assert (failed.result["outcome"], failed.result["reason"]) == ("rolled back", "crashed"), failed.output
    assert any("OutOfMemoryError" in line for line in failed.result["log_tail"])
    kept = cluster.host("spark1", "sh", "-c", "cat ~/.spark-control/logs/*-demo-pair.log").stdout
    assert "Application startup complete" in kept
    assert cluster.chat("demo-pair")
    again = cluster.swap("demo-pair")
    assert (again.code, again.result["outcome"]) == (0, "unchanged"), again.output
    seen = cluster.run("probe")
    assert seen.result["serving"]["ready"]
    # The simulated Ray hands no work to its workers, so there only the head holds memory.
    holders = seen.result["sparks"][: 1 if launcher == "january" else 2]
    assert all(spark["memory"]["model"] > 60 << 30 for spark in holders), seen.output
    back = cluster.swap("demo-small")
    assert (back.code, back.result["outcome"]) == (0, "serving"), back.output
    assert cluster.containers("spark2") == []


THREE = """
recipe_version: "1"
name: "Demo: on three Sparks"
model: demo/pair
container: vllm-node
cluster_only: true
defaults: {port: 8888, host: 0.0.0.0, pipeline_parallel: 3, gpu_memory_utilization: 0.5}
command: |
  vllm serve demo/pair --served-model-name demo-three --host {host} --port {port} \
    --pipeline-parallel-size {pipeline_parallel} --gpu-memory-utilization {gpu_memory_utilization}
"""


def test_a_model_over_three_sparks_and_back_to_one(cluster):
    (cluster.lab.state / "recipes/demo-three.yaml").write_text(THREE)
    few = cluster.swap("demo-three")
    assert few.result["reason"] == "too_few_sparks", few.output
    cluster.lab.use(3)
    three = cluster.swap("demo-three")
    assert (three.code, three.result["outcome"]) == (0, "serving"), three.output
    assert three.result["serving"]["nodes"] == ["spark1", "spark2", "spark3"]
    assert [cluster.containers(host) for host in cluster.lab.hosts] == [["vllm_node"]] * 3
    assert cluster.chat("demo-three")
    assert cluster.swap("demo-three").result["outcome"] == "unchanged"
    back = cluster.swap("demo-small")
    assert (back.code, back.result["outcome"]) == (0, "serving"), back.output
    assert [cluster.containers(host) for host in cluster.lab.hosts] == [["vllm_node"], [], []]


def test_the_web_server_swaps_and_rolls_back(cluster):
    server = Server(cluster)
    try:
        # The server looks at the Sparks once somebody asks.
        patiently(lambda: server.ask("GET", "/api/models")[1].get("models"), "the first look")
        swapped = server.ended(server.ask("POST", "/api/swap", {"model": "demo-pair"})[1]["job_id"])
        assert (swapped["status"], swapped["result"]["outcome"]) == ("successful", "serving"), swapped
        assert cluster.chat("demo-pair")
        failed = server.ended(server.ask("POST", "/api/swap", {"model": "demo-crash"})[1]["job_id"])
        assert (failed["status"], failed["result"]["outcome"]) == ("failed", "rolled back"), failed
        assert cluster.chat("demo-pair")
    finally:
        server.stop()


def test_a_server_that_died_in_a_running_container_is_started_again(cluster):
    assert cluster.swap("demo-small").code == 0
    cluster.host("spark1", "docker", "exec", "vllm_node", "pkill", "-9", "-f", "vllm")
    patiently(lambda: not cluster.models(), "the server's end")
    assert cluster.containers("spark1") == ["vllm_node"]
    assert not cluster.run("probe").result["serving"]["ready"]
    again = cluster.swap("demo-small")
    assert (again.code, again.result["outcome"]) == (0, "serving"), again.output
    assert cluster.chat("demo-small")


def test_a_container_left_over_from_somebody_is_replaced_with_a_warning(cluster):
    for host in ("spark1", "spark2"):
        started = cluster.host(
            host, "docker", "run", "-d", "--rm", "--privileged", "--gpus", "all", "--network", "host",
            "--name", "vllm_node", "vllm-node", "sleep", "infinity",
        )  # fmt: skip
        assert started.returncode == 0, started.stderr
    swapped = cluster.swap("demo-small")
    assert (swapped.code, swapped.result["outcome"]) == (0, "serving"), swapped.output
    assert "was not started from here" in swapped.result["warnings"][0]
    assert cluster.containers("spark2") == []


def test_two_sparks_are_stopped_at_once(cluster):
    """PID 1 of the container ignores TERM: who asked with it first would wait ten seconds on each Spark."""
    assert cluster.swap("demo-pair").code == 0
    asked = ("docker", "ps", "--no-trunc", "--quiet", "--filter", "name=^vllm_node$")
    there = {host: cluster.host(host, *asked).stdout.strip() for host in ("spark1", "spark2")}
    stopped = cluster.run("stop_model")
    assert stopped.code == 0, stopped.output
    for host, container in there.items():
        since = ("docker", "events", "--since", "2m", "--until", "0s")
        kills = ("--filter", f"container={container}", "--filter", "event=kill")
        signals = cluster.host(host, *since, *kills, "--format", "{{.Actor.Attributes.signal}}").stdout.split()
        assert signals == ["9"]
