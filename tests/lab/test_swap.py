"""The same swaps as on the simulated Sparks, over a real sshd and a real docker."""

from __future__ import annotations

import pytest

from tests.support import wait_for


@pytest.mark.parametrize("shape", ["september", "january"])
def test_a_swap_serves_again_changes_nothing_and_stops(cluster, shape):
    cluster.lab.put_launcher(shape)
    first = cluster.swap("demo-small")
    assert (first.code, first.result["outcome"]) == (0, "serving"), first.output
    assert cluster.chat("demo-small")
    again = cluster.swap("demo-small")
    assert (again.code, again.result["outcome"], again.result["changed"]) == (0, "unchanged", False), again.output
    assert {host: row["changed"] for host, row in again.recap.items()} == {"spark1": 0, "spark2": 0}
    stopped = cluster.run("stop_model")
    assert (stopped.code, stopped.result["message"]) == (0, "Demo: small is stopped."), stopped.output
    assert cluster.containers("spark1") == []
    assert cluster.run("stop_model").result["outcome"] == "unchanged"


def test_a_model_over_two_sparks_and_back(cluster):
    pair = cluster.swap("demo-pair")
    assert (pair.code, pair.result["outcome"]) == (0, "serving"), pair.output
    assert pair.result["serving"]["nodes"] == ["spark1", "spark2"]
    assert cluster.containers("spark1") == cluster.containers("spark2") == ["vllm_node"]
    assert cluster.chat("demo-pair")
    again = cluster.swap("demo-pair")
    assert (again.code, again.result["outcome"]) == (0, "unchanged"), again.output
    seen = cluster.run("probe")
    assert seen.result["serving"]["ready"]
    assert all(spark["memory"]["model"] > 60 << 30 for spark in seen.result["sparks"]), seen.output
    back = cluster.swap("demo-small")
    assert (back.code, back.result["outcome"]) == (0, "serving"), back.output
    assert cluster.containers("spark2") == []


@pytest.mark.parametrize("shape", ["september", "january"])
def test_a_model_that_crashes_is_replaced_by_the_old_one(cluster, shape):
    cluster.lab.put_launcher(shape)
    assert cluster.swap("demo-small").code == 0
    failed = cluster.swap("demo-crash")
    assert failed.code != 0
    assert (failed.result["outcome"], failed.result["reason"]) == ("rolled back", "crashed"), failed.output
    assert cluster.chat("demo-small")
    assert cluster.swap("demo-small").result["outcome"] == "unchanged"


@pytest.mark.parametrize(
    "shape",
    [
        "september",
        pytest.param(
            "january",
            # `docker exec` in the foreground writes to the launcher, so the container's log has nothing of the model.
            marks=pytest.mark.xfail(strict=True, reason="the vllm role reads the container's log only"),
        ),
    ],
)
def test_the_log_of_a_model_is_kept_and_shown_when_it_crashes(cluster, shape):
    cluster.lab.put_launcher(shape)
    assert cluster.swap("demo-small").code == 0
    failed = cluster.swap("demo-crash")
    kept = cluster.host("spark1", "sh", "-c", "cat ~/.spark-control/logs/*-demo-small.log").stdout
    assert "Application startup complete" in kept
    assert any("OutOfMemoryError" in line for line in failed.result["log_tail"])


def test_a_server_that_died_in_a_running_container_is_started_again(cluster):
    assert cluster.swap("demo-small").code == 0
    cluster.host("spark1", "docker", "exec", "vllm_node", "pkill", "-9", "-f", "vllm")
    wait_for(lambda: not cluster.models(), what="the server's end")
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
    """PID 1 of the container ignores TERM, so one `docker stop` after the other would cost 10 s each."""
    assert cluster.swap("demo-pair").code == 0
    stopped = cluster.run("stop_model")
    assert stopped.code == 0, stopped.output
    ends = []
    for host in ("spark1", "spark2"):
        asked = ("docker", "events", "--since", "2m", "--until", "0s", "--filter", "event=die")
        found = cluster.host(host, *asked, "--format", "{{.TimeNano}} {{.Actor.Attributes.name}}").stdout
        ends.append(max(int(line.split()[0]) for line in found.splitlines() if "vllm_node" in line) / 1e9)
    assert abs(ends[0] - ends[1]) < 2
