"""What goes wrong with a swap, each by the real playbook, and what a person is then told."""

from __future__ import annotations

import getpass
import json
import socket

import pytest

from tests.support import wait_for


def assert_refused(cluster, run, reason: str, *words: str) -> None:
    """The run failed before it touched anything, says why, and demo-small still answers."""
    assert run.code != 0, run.output
    assert (run.result["outcome"], run.result["reason"], run.result["changed"]) == ("refused", reason, False), (
        run.output
    )
    for word in words:
        assert word in run.result["message"]
    assert cluster.models() == ["demo-small"]
    assert not (cluster.root / "spark1/home/.spark-control/lease.json").exists()


@pytest.mark.serving
def test_what_is_found_before_anything_stops_leaves_the_old_model_alone(cluster):
    assert_refused(cluster, cluster.swap("demo-smal"), "unknown_model", "demo-small")
    cluster.recipe(
        "demo-broken",
        "recipe_version: '2'\nmodel: demo/second\ndefaults: {port: [8000]}\ncommand: vllm serve {modle}\n",
    )
    assert_refused(cluster, cluster.swap("demo-broken"), "broken_recipe", "demo-broken.yaml", "modle")
    cluster.recipe("demo-not-yaml", "model: [unclosed\n")
    assert_refused(cluster, cluster.swap("demo-not-yaml"), "broken_recipe", "demo-not-yaml.yaml")
    assert_refused(cluster, cluster.swap("demo-one-host"), "weights_missing", "spark2")
    assert_refused(cluster, cluster.swap("demo-too-big"), "memory", "186 GB", "122 GB on spark1")
    assert_refused(cluster, cluster.swap("qwen3.5-397b"), "too_few_sparks", "4 Sparks", "2")
    image = cluster.fault("spark2", "image-missing")
    assert_refused(cluster, cluster.swap("demo-pair"), "image_missing", "vllm-node", "spark2")
    image.unlink()
    launcher = cluster.root / "spark1/home/spark-vllm-docker/launch-cluster.sh"
    launcher.rename(launcher.with_suffix(".away"))
    assert_refused(cluster, cluster.swap("demo-pair"), "launcher_missing", "spark-vllm-docker")
    launcher.with_suffix(".away").rename(launcher)
    docker = cluster.fault("spark2", "docker-down")
    assert_refused(cluster, cluster.swap("demo-pair"), "docker", "spark2", "Docker daemon")
    docker.unlink()
    assert cluster.swap("demo-pair").code == 0


def test_too_little_memory_shows_both_sides(cluster):
    """Something else than our model holds the memory: a container of another name."""
    other = (
        "docker",
        "run",
        "-d",
        "--name",
        "other",
        "-v",
        f"{cluster.root}/spark1/home/.cache/huggingface:/root/.cache/huggingface",
    )
    cluster.host(
        "spark1",
        *other,
        "vllm-node",
        "vllm",
        "serve",
        "demo/second",
        "--port",
        "9001",
        "--gpu-memory-utilization",
        "0.5",
    )
    wait_for(lambda: cluster.free_gb("spark1") < 70, what="the other container's memory")
    refused = cluster.swap("qwen3.6-35b-a3b")
    assert refused.result["reason"] == "memory", refused.output
    row = refused.result["arithmetic"][0]
    assert row["needs"] > row["free"]
    assert (
        f"It needs {row['needs'] / 2**30:.0f} GB and {row['free'] / 2**30:.0f} GB of the 122 GB on spark1 are free"
        in row["message"]
    )


@pytest.mark.parametrize(
    ("model", "reason", "words", "log"),
    [
        ("demo-crash", "crashed", "it stopped by itself while it loaded", "Error"),
        ("demo-mute", "not_answering", "it came up and gave no answer within 5 s", "Application startup complete"),
    ],
)
@pytest.mark.serving
def test_a_model_that_fails_is_replaced_by_the_old_one(cluster, model, reason, words, log):
    failed = cluster.swap(model)
    assert failed.code != 0
    assert (failed.result["outcome"], failed.result["reason"]) == ("rolled back", reason), failed.output
    assert words in failed.result["message"]
    assert failed.result["message"].endswith("Demo: small is serving again.")
    assert any(log in line for line in failed.result["log_tail"])
    assert cluster.models() == ["demo-small"]
    assert cluster.chat("demo-small")
    assert cluster.swap("demo-small").result["outcome"] == "unchanged"


@pytest.mark.serving
def test_a_failed_rollback_is_said_plainly_and_the_next_swap_works(cluster):
    cluster.behave("demo/second", "crash")
    failed = cluster.swap("demo-crash")
    assert failed.code != 0
    assert (failed.result["outcome"], failed.result["reason"]) == ("nothing serving", "rollback_failed"), failed.output
    assert "Demo: small did not come back" in failed.result["message"]
    assert "Nothing is serving now; choose a model to start." in failed.result["message"]
    assert set(failed.result["stories"]) == {"new", "old"}
    assert failed.result["serving"] is None or not failed.result["serving"]["ready"]
    assert cluster.models() == []
    next_one = cluster.swap("demo-pair")
    assert (next_one.code, next_one.result["outcome"]) == (0, "serving"), next_one.output


def test_a_first_model_that_fails_says_that_nothing_served_before(cluster):
    failed = cluster.swap("demo-crash")
    assert failed.result["outcome"] == "nothing serving"
    assert "Nothing was serving before, and nothing is serving now." in failed.result["message"]
    assert cluster.containers("spark1") == []


def test_memory_that_never_comes_back(cluster):
    assert cluster.swap("demo-leak").code == 0
    failed = cluster.swap("demo-small")
    assert failed.code != 0
    assert failed.result["outcome"] == "nothing serving", failed.output
    assert "GB are needed and" in failed.result["stories"]["new"]
    assert "a reboot of this Spark may be needed" in failed.result["message"]
    assert cluster.models() == []
    for leaked in cluster.root.glob("*/faults/leaked"):
        leaked.unlink()
    cluster.host("spark1", "docker", "ps")
    assert cluster.swap("demo-small").code == 0


@pytest.mark.serving
def test_a_container_that_will_not_go(cluster):
    stuck = cluster.fault("spark1", "rm-refuses")
    failed = cluster.swap("demo-pair")
    assert failed.code != 0
    assert "docker did not remove the container vllm_node" in failed.result["message"]
    stuck.unlink()
    assert cluster.swap("demo-pair").code == 0


def test_an_unreachable_spark(cluster, tmp_path):
    away = tmp_path / "away.yml"
    host = {"ansible_connection": "ssh", "ansible_host": f"{cluster.network}.12", "ansible_port": 1}
    away.write_text(json.dumps({"all": {"hosts": {"spark2": host}}}))
    inventories = ("-i", cluster.environment["ANSIBLE_INVENTORY"], "-i", str(away))
    refused = cluster.swap("demo-pair", *inventories)
    assert (refused.result["outcome"], refused.result["reason"]) == ("refused", "unreachable"), refused.output
    assert "spark2 does not answer" in refused.result["message"]
    alone = cluster.swap("demo-small", *inventories)
    assert (alone.code, alone.result["outcome"]) == (0, "serving"), alone.output
    assert "spark2 does not answer" in alone.result["warnings"][0]
    seen = cluster.run("probe", *inventories)
    assert [spark["reachable"] for spark in seen.result["sparks"]] == [True, False]
    assert seen.result["serving"]["ready"]


def test_a_spark_that_ends_background_work_with_the_session_is_warned_of(cluster):
    assert "warnings" in (well := cluster.swap("demo-small", "--check").result)
    assert well["warnings"] == []
    cluster.fault("spark1", "no-linger")
    seen = cluster.run("probe")
    assert "sudo loginctl enable-linger" in seen.result["sparks"][0]["warning"]
    assert seen.result["sparks"][1]["warning"] is None
    assert cluster.swap("demo-small", "--check").result["warnings"][0].startswith("spark1 ends background work")


def test_two_swaps_at_once_from_two_laptops(cluster):
    runs = [
        cluster.finish(process)
        for process in [cluster.start("swap", model=name) for name in ("demo-small", "demo-pair")]
    ]
    codes = sorted(run.code for run in runs)
    assert codes[0] == 0, runs[0].output + runs[1].output
    assert codes[1] != 0, runs[0].output + runs[1].output
    lost = next(run for run in runs if run.code)
    assert lost.result["reason"] == "leased", lost.output
    assert "reserved by" in lost.result["message"]
    won = next(run for run in runs if not run.code)
    assert cluster.models() == [won.result["serving"]["served_name"]]


@pytest.mark.serving
def test_a_lease_of_somebody_else_stops_a_swap_unless_forced(cluster):
    taken = cluster.run("gpu_lease", holder="ComfyUI", purpose="a film", seconds=600, token_hash="ab" * 32)
    assert taken.code == 0, taken.output
    refused = cluster.swap("demo-pair")
    assert_refused_by_lease(refused)
    assert_refused_by_lease(cluster.run("stop_model"))
    assert cluster.models() == ["demo-small"]
    wrong = cluster.run("gpu_lease", state="absent", token_hash="cd" * 32)
    assert wrong.code != 0
    forced = cluster.swap("demo-pair", force=True)
    assert forced.code == 0, forced.output
    cluster.run("gpu_lease", holder="ComfyUI", token_hash="ab" * 32)
    freed = cluster.run("gpu_lease", state="absent", token_hash="ab" * 32)
    assert (freed.code, freed.result["message"]) == (0, "The GPUs are free."), freed.output
    assert cluster.run("gpu_lease", state="absent", token_hash="ab" * 32).recap["spark1"]["changed"] == 0


def assert_refused_by_lease(run) -> None:
    """The run names the holder and the time left."""
    assert run.code != 0
    assert run.result["reason"] == "leased", run.output
    assert "The GPUs are reserved by ComfyUI for a film, for another 10 min." in run.result["message"]


@pytest.mark.serving
def test_a_run_that_was_killed_says_whose_it_was_and_tidying_needs_no_more_than_its_name(cluster):
    """As on a laptop that is shut: ansible-playbook is gone in mid-swap, with its lease left behind."""
    cluster.behave("demo/loads-slowly", "ok", load_seconds=30)
    killed = cluster.start("swap", model="demo-slow")
    lease = cluster.root / "spark1/home/.spark-control/lease.json"
    wait_for(lambda: not cluster.models() and lease.exists(), what="the swap's middle")
    wait_for(lambda: cluster.containers("spark1"), what="the new model's container")
    killed.kill()
    killed.wait()
    # On this machine the run is known to be over; on any other it is only known when its lease ends.
    taken = json.loads(lease.read_text())
    assert cluster.swap("demo-small", "--check").result["outcome"] == "preview"
    reserved = cluster.run("gpu_lease", "--check", holder="ComfyUI")
    assert reserved.result["message"] == "The GPUs are reserved by ComfyUI.", reserved.output
    assert cluster.run("gpu_lease", "--check", state="absent", holder="ComfyUI").result["reason"] == "leased"
    lease.write_text(json.dumps(taken | {"run": "a run on another machine"}))
    blocked = cluster.swap("demo-small")
    assert blocked.result["reason"] == "leased"
    holder = f"{getpass.getuser()}@{socket.gethostname()}"
    assert f"The GPUs are reserved by {holder} for swap to Demo: loads slowly" in blocked.result["message"]
    assert "That run took them" in blocked.result["message"]
    assert "tidy_swap.yml" in blocked.result["message"]
    tidied = cluster.run("tidy_swap")
    assert tidied.code == 0, tidied.output
    assert "was still starting and is stopped" in tidied.result["message"]
    assert not lease.exists()
    again = cluster.run("tidy_swap")
    assert (again.code, again.result["changed"]) == (0, False), again.output
    swapped = cluster.swap("demo-small")
    assert (swapped.code, swapped.result["outcome"]) == (0, "serving"), swapped.output


@pytest.mark.serving
def test_tidying_leaves_what_serves_and_what_somebody_reserved(cluster):
    reserved = cluster.run("gpu_lease", holder="ComfyUI", seconds=600)
    assert reserved.code == 0, reserved.output
    tidied = cluster.run("tidy_swap")
    assert (tidied.code, tidied.result["message"]) == (0, "Demo: small serves."), tidied.output
    assert cluster.models() == ["demo-small"]
    assert json.loads((cluster.root / "spark1/home/.spark-control/lease.json").read_text())["holder"] == "ComfyUI"


@pytest.mark.serving
def test_what_the_launcher_would_refuse_is_told_before_anything_stops(cluster):
    before = cluster.host("spark1", "docker", "ps", "--no-trunc", "-q").stdout
    shut = cluster.fault("spark2", "ssh-down")
    for arguments in ((), ("--check", "--diff")):
        refused = cluster.swap("demo-pair", *arguments)
        assert (refused.result["outcome"], refused.result["reason"]) == ("refused", "head_kept_out"), refused.output
        assert "spark1 does not get in to spark2 over SSH" in refused.result["message"]
        assert "mesh_ssh_keys.yml" in refused.result["message"]
    shut.unlink()
    cluster.recipe("demo-mod", MOD)
    refused = cluster.swap("demo-mod")
    assert refused.result["reason"] == "mod_missing", refused.output
    assert "mods/absent" in refused.result["message"]
    assert cluster.host("spark1", "docker", "ps", "--no-trunc", "-q").stdout == before
    settings = cluster.root / "spark1/home/spark-vllm-docker/.env"
    settings.write_text("CLUSTER_NODES\n")
    refused = cluster.swap("demo-pair")
    assert cluster.swap("demo-small").result["outcome"] == "unchanged"  # what serves needs no launcher
    settings.unlink()
    assert refused.result["reason"] == "launcher_settings", refused.output
    assert "line 1 has no" in refused.result["message"]
    assert cluster.models() == ["demo-small"]
    misspelt = cluster.swap("demo-pair", forse="true")
    assert misspelt.code != 0
    assert misspelt.output.splitlines()[-1] == "swap did not start: There is no option forse; did you mean force?"


MOD = """
recipe_version: "1"
name: "Demo: a mod that is not there"
model: demo/second
container: vllm-node
solo_only: true
mods: [mods/absent]
defaults: {port: 8888, host: 0.0.0.0}
command: vllm serve demo/second --host {host} --port {port} --gpu-memory-utilization 0.5
"""


def test_what_would_keep_the_old_model_from_coming_back_is_a_warning(cluster):
    assert cluster.swap("demo-pair").code == 0
    cluster.fault("spark2", "ssh-down")
    swapped = cluster.swap("demo-small")
    assert swapped.code == 0, swapped.output
    said = "Demo: on two Sparks could not be put back if the swap failed: spark1 does not get in to spark2"
    assert any(warning.startswith(said) for warning in swapped.result["warnings"]), swapped.result["warnings"]


NO_GPU = 'docker: Error response from daemon: could not select device driver "nvidia" with capabilities: [[gpu]].'


@pytest.mark.serving
@pytest.mark.parametrize("host", ["spark1", "spark2"])
def test_a_docker_run_that_fails_is_told_in_dockers_words(cluster, host):
    """On a worker the launcher goes on, so that the head's part waits for one that never was."""
    cluster.fault(host, "run-fails", NO_GPU)
    failed = cluster.swap("demo-pair")
    assert failed.code != 0
    assert "could not select device driver" in failed.result["stories"]["new"], failed.result
    assert "exit code" not in failed.result["message"]
    assert "ended while it loaded" not in failed.result["stories"]["new"]
    if host == "spark2":
        assert failed.result["reason"] == "launch_failed"
        assert "did not start on spark2" in failed.result["stories"]["new"]


def test_who_holds_the_memory_is_named(cluster):
    launcher = str(cluster.root / "spark1/home/spark-vllm-docker/launch-cluster.sh")
    words = ("vllm", "serve", "demo/second", "--port", "8999", "--gpu-memory-utilization", "0.8")
    started = cluster.host("spark1", launcher, "--solo", "--name", "comfy", "-d", "exec", *words)
    assert started.returncode == 0, started.stdout
    wait_for(lambda: cluster.free_gb("spark1") < 60, what="the other container's memory being taken")
    refused = cluster.swap("demo-small")
    assert refused.result["reason"] == "memory", refused.output
    assert "There, the container comfy holds" in refused.result["message"]


@pytest.fixture(autouse=True)
def _no_leftovers(cluster, simulation):
    """No test may leave a process behind but those of containers, which go with their Spark."""
    yield
    wait_for(lambda: not simulation.outside_containers(), what="the end of every process outside of containers")
