"""A swap as a job: through the web server and the command line, cut off, cancelled, raced."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import BIN, Server, wait_for
from webui.jobs import JobStore


@pytest.fixture
def server(cluster):
    """A web server that knows its cluster."""
    made = Server(cluster)
    wait_for(lambda: made.ask("GET", "/api/models")[1].get("models"), 120, "the first look at the cluster")
    yield made
    made.stop()


@pytest.fixture
def store(cluster, project) -> JobStore:
    """The jobs of that cluster's controller."""
    return JobStore(Path(cluster.environment["SPARK_CONTROL_STATE"]), project)


def command(cluster, *arguments: str) -> subprocess.CompletedProcess:
    """`spark-control ARGUMENTS` as a person types it."""
    return subprocess.run(
        [BIN / "spark-control", *arguments], env=cluster.environment, capture_output=True, text=True, check=False
    )


def test_swap_over_the_api(server, cluster):
    status, accepted = server.ask("POST", "/api/swap", {"model": "demo-small"})
    assert status == 202
    job = server.ended(accepted["job_id"])
    assert job["status"] == "successful"
    assert job["result"]["message"].startswith("Demo: small serves on spark1")
    assert cluster.models() == ["demo-small"]
    wait_for(lambda: server.ask("GET", "/health")[1].get("serving", {}).get("model") == "demo-small", 60, "the health")


def test_a_dry_run_changes_nothing(server, cluster):
    status, accepted = server.ask("POST", "/api/swap", {"model": "demo-small", "dry_run": True})
    assert status == 202
    job = server.ended(accepted["job_id"])
    assert job["result"]["outcome"] == "preview"
    assert cluster.containers("spark1") == []


def test_the_page_and_the_laptop_come_to_the_same(server, cluster):
    _, accepted = server.ask("POST", "/api/swap", {"model": "demo-small"})
    by_page = server.ended(accepted["job_id"])["result"]
    by_hand = cluster.swap("demo-small")
    assert (by_hand.result["outcome"], by_hand.result["changed"]) == ("unchanged", False)
    assert by_hand.result["serving"]["digest"] == by_page["serving"]["digest"]
    by_command = command(cluster, "run", "swap", "-e", "model=demo-small")
    assert by_command.returncode == 0, by_command.stdout
    assert "serves already" in by_command.stdout


def test_what_cannot_be_asked_for_is_refused_by_name(server):
    assert server.ask("POST", "/api/swap", {"model": "nope"})[0] == 404
    assert server.ask("POST", "/api/swap", {"model": "../recipes/demo-small"})[0] in (404, 422)
    assert server.ask("POST", "/api/swap", {"modle": "demo-small"})[0] == 422
    assert server.ask("POST", "/api/swap", {"model": 7})[1]["errors"][0]["field"] == "model"
    assert server.ask("GET", "/api/swap/lock")[0] == 200


def test_two_swaps_at_once_from_two_callers(server, cluster):
    # Long enough for the other caller to come while it loads, on a busy machine too.
    cluster.behave("demo/loads-slowly", "ok", load_seconds=25)
    first = server.ask("POST", "/api/swap", {"model": "demo-slow"})
    second = server.ask("POST", "/api/swap", {"model": "demo-pair"})
    assert (first[0], second[0]) == (202, 409)
    assert second[1]["job_id"] == first[1]["job_id"]
    # Whoever has the lease first is served: it has to be the one that was asked first.
    wait_for(lambda: (server.job(first[1]["job_id"]).get("percent") or 0) > 0, what="some progress")
    other = command(cluster, "run", "swap", "-e", "model=demo-pair")
    assert other.returncode != 0
    assert server.ended(first[1]["job_id"])["status"] == "successful"
    assert cluster.models() == ["demo-slow"]


def test_a_reservation_refuses_swaps_until_its_token_gives_it_back(server, cluster):
    status, lock = server.ask("POST", "/api/swap/lock", {"holder": "ComfyUI", "purpose": "a film", "seconds": 300})
    assert status == 202
    assert server.ended(lock["job_id"])["status"] == "successful"
    assert server.ask("GET", "/api/swap/lock")[1]["lease"]["holder"] == "ComfyUI"
    refused = server.ask("POST", "/api/swap", {"model": "demo-small"})
    assert refused[0] == 423
    assert "ComfyUI" in refused[1]["detail"]
    state = Path(cluster.environment["SPARK_CONTROL_STATE"])
    grep = subprocess.run(
        ["grep", "-rl", lock["token"], state, cluster.root], capture_output=True, text=True, check=False
    )
    assert grep.stdout == "", "the token is kept nowhere"
    freed = server.ask("DELETE", "/api/swap/lock", {"token": lock["token"]})
    assert server.ended(freed[1]["job_id"])["status"] == "successful"
    assert server.ask("POST", "/api/swap", {"model": "demo-small", "dry_run": True})[0] == 202


def test_the_job_goes_on_when_the_web_server_is_killed(server, cluster):
    cluster.behave("demo/loads-slowly", "ok", load_seconds=8)
    _, accepted = server.ask("POST", "/api/swap", {"model": "demo-slow"})
    wait_for(lambda: (server.job(accepted["job_id"]).get("percent") or 0) > 0, what="some progress")
    server.kill()
    server.start()
    assert server.job(accepted["job_id"])["status"] == "running"
    assert [job["job_id"] for job in server.ask("GET", "/api/jobs")[1]["jobs"]] == [accepted["job_id"]]
    job = server.ended(accepted["job_id"], 90)
    assert job["status"] == "successful"
    assert cluster.models() == [job["result"]["serving"]["served_name"]]


def test_a_killed_supervisor_leaves_an_interrupted_job_and_the_next_swap_converges(server, cluster, store):
    cluster.behave("demo/loads-slowly", "ok", load_seconds=8)
    _, accepted = server.ask("POST", "/api/swap", {"model": "demo-slow"})
    wait_for(lambda: (server.job(accepted["job_id"]).get("percent") or 0) > 0, what="some progress")
    os.kill(store.get(accepted["job_id"]).data["pid"], signal.SIGKILL)
    job = server.ended(accepted["job_id"])
    assert job["status"] == "interrupted"
    assert "Run it again" in job["result"]["message"]
    _, again = server.ask("POST", "/api/swap", {"model": "demo-small"})
    assert server.ended(again["job_id"])["status"] == "successful"
    assert cluster.models() == ["demo-small"]


# What a cancel finds half-done differs by the task that it hits; the words are each task's name.
PHASES = [
    "Plan the launch",
    "Look at every Spark",
    "Reserve",
    "Stop Demo: small",
    "Start Demo: loads",
    "Wait for the first token of Demo: loads",
]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.serving
def test_cancel_in_every_phase(cluster, store, phase, monkeypatch):
    for key, value in cluster.environment.items():
        monkeypatch.setenv(key, value)
    cluster.behave("demo/loads-slowly", "ok", load_seconds=30)
    job = store.start("swap", {"model": "demo-slow"})
    for event in job.follow():
        if event and (event.get("task") or "").startswith(phase):
            break
    assert store.cancel(job.id)
    wait_for(lambda: store.get(job.id).finished, 60, "the cancelled job's end")
    ended = store.get(job.id)
    assert ended.status == "cancelled"
    serves = bool(cluster.models())
    assert ("Nothing is serving now" in ended.result["message"]) is not serves, ended.result
    if not serves:
        assert cluster.containers("spark1") == []
    assert not (cluster.root / "spark1/home/.spark-control/lease.json").exists()
    left = [entry for entry in Path("/proc").glob("[0-9]*/environ") if tagged(entry, job.id)]
    assert left == []
    assert cluster.swap("demo-small").code == 0
    assert cluster.models() == ["demo-small"]


def tagged(environ: Path, job_id: str) -> bool:
    """Whether a process belongs to the job."""
    try:
        return f"SPARK_CONTROL_JOB={job_id}".encode() in environ.read_bytes()
    except OSError:
        return False
