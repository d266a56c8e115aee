"""What only real machines do: links that drop, hosts that vanish, a docker that hangs, a disk that is full."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.lab.conftest import patiently

# Each file is a group of its own: whichever worker is free takes it, with a lab of its own.
pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("faults")]


def test_ssh_that_drops_in_mid_launch_leaves_the_launch_alone_and_the_next_run_converges(cluster):
    cluster.behave("demo/second", "ok", load_seconds=8)
    run = cluster.start("swap", model="demo-small", vllm_lease_seconds=5)
    patiently(lambda: "vllm_node" in cluster.containers("spark1"), "the launch")
    for host in cluster.lab.hosts:
        cluster.lab.root(host, "pkill", "-KILL", "-f", "sshd: spark", check=False)
    dropped = cluster.finish(run)
    assert dropped.code != 0, dropped.output
    patiently(lambda: cluster.models() == ["demo-small"], "the launch that nobody watches")
    settled = cluster.swap("demo-small", force=True)
    assert settled.code == 0, settled.output
    assert settled.result["serving"]["ready"]
    assert cluster.swap("demo-small").result["outcome"] == "unchanged"


def test_a_worker_that_is_unplugged_is_missed_before_anything_stops(cluster):
    assert cluster.swap("demo-small").code == 0
    cluster.unplug("spark2")
    refused = cluster.swap("demo-pair")
    assert (refused.result["outcome"], refused.result["reason"]) == ("refused", "unreachable"), refused.output
    assert "spark2 does not answer" in refused.result["message"]
    assert cluster.chat("demo-small")
    alone = cluster.swap("demo-small")
    assert (alone.code, alone.result["outcome"]) == (0, "unchanged"), alone.output
    assert "spark2 does not answer" in alone.result["warnings"][0]
    cluster.plug("spark2")
    assert cluster.swap("demo-pair").code == 0


def test_a_worker_that_is_unplugged_while_it_serves_is_told_and_stopped_when_it_is_back(cluster):
    assert cluster.swap("demo-pair").code == 0
    cluster.unplug("spark2")
    seen = cluster.run("probe")
    assert [spark["reachable"] for spark in seen.result["sparks"]] == [True, False]
    assert not seen.result["serving"]["ready"]
    cluster.plug("spark2")
    swapped = cluster.swap("demo-small")
    assert (swapped.code, swapped.result["outcome"]) == (0, "serving"), swapped.output
    assert cluster.containers("spark2") == []


# Where the launcher starts a part of vLLM on each worker; January's leaves that to Ray, whose simulation does not.
parts = pytest.mark.launcher("september", "october")


@pytest.mark.parametrize("when", ["launch", pytest.param("load", marks=parts)])
def test_a_worker_that_is_unplugged_in_mid_swap_is_missed_and_the_old_model_is_back(cluster, when):
    assert cluster.swap("demo-small").code == 0
    cluster.behave("demo/pair", "ok", load_seconds=60)
    run = cluster.start("swap", model="demo-pair", vllm_hold_seconds=15)
    patiently(lambda: cluster.containers("spark2"), "the launch")
    if when == "load":
        patiently(lambda: "lab_vllm" in working(cluster, "spark2"), "the worker's part")
    cluster.unplug("spark2")
    failed = cluster.finish(run)
    assert (failed.result["outcome"], failed.result["reason"]) == ("rolled back", "unreachable"), failed.output
    assert "spark2 stopped answering" in failed.result["message"]
    assert "Demo: small is serving again." in failed.result["message"]
    assert cluster.chat("demo-small")
    cluster.plug("spark2")
    cluster.behave("demo/pair", "ok")
    again = cluster.swap("demo-pair")
    assert (again.code, again.result["outcome"]) == (0, "serving"), again.output


@parts
def test_a_worker_whose_part_dies_while_the_model_loads_is_named(cluster):
    cluster.behave("demo/pair", "ok", load_seconds=60)
    run = cluster.start("swap", model="demo-pair")
    patiently(lambda: "lab_vllm" in working(cluster, "spark2"), "the worker's part")
    cluster.host("spark2", "docker", "exec", "vllm_node", "pkill", "-9", "-f", "vllm")
    failed = cluster.finish(run)
    assert (failed.result["outcome"], failed.result["reason"]) == ("nothing serving", "crashed"), failed.output
    assert "spark2" in failed.result["message"]
    assert cluster.containers("spark1") == cluster.containers("spark2") == []


def working(cluster, host: str) -> str:
    """What runs in the container on that host."""
    return cluster.host(host, "docker", "top", "vllm_node", "-eo", "pid,args").stdout


def test_a_link_with_200_ms_of_round_trip_is_only_slower(cluster):
    slow = cluster.slow(200)
    swapped = cluster.swap("demo-pair", **slow)
    assert (swapped.code, swapped.result["outcome"]) == (0, "serving"), swapped.output
    assert cluster.swap("demo-pair", **slow).result["outcome"] == "unchanged"


@pytest.mark.parametrize("seconds", [-7200, 7200])
def test_a_reservation_is_by_the_heads_clock_alone(cluster, seconds):
    cluster.skew("spark1", seconds)
    began, seen, ended = time.time(), cluster.run("probe"), time.time()
    head, worker = (spark["clock"] for spark in seen.result["sparks"])
    assert began + seconds <= head <= ended + seconds, seen.output
    assert began <= worker <= ended
    assert cluster.run("gpu_lease", holder="ComfyUI", seconds=600).code == 0
    refused = cluster.swap("demo-small")
    assert refused.result["reason"] == "leased", refused.output
    assert "reserved by ComfyUI, for another 10 min" in refused.result["message"]
    # Taken over for two seconds, and left to expire.
    assert cluster.run("gpu_lease", holder="molecule", seconds=2, force=True).code == 0
    patiently(lambda: not reserved(cluster), "the reservation's end")
    free = cluster.swap("demo-small", "--check")
    assert (free.code, free.result["outcome"]) == (0, "preview"), free.output


# By the host's own clock, which a test may have set.
RESERVED = """import json, os, time
with open(os.path.expanduser("~/.spark-control/lease.json")) as file:
    print(json.load(file)["expires"] > time.time())
"""


def reserved(cluster) -> bool:
    """Whether the lease on the head has some of its time left."""
    return cluster.host("spark1", "python3", "-c", RESERVED).stdout == "True\n"


def test_what_was_launched_outlives_every_ssh_session(cluster):
    assert cluster.swap("demo-small").code == 0
    cluster.log_out()
    for host in cluster.lab.hosts:
        assert cluster.lab.root(host, "pgrep", "-f", "sshd: spark", check=False) == ""
    assert cluster.chat("demo-small")
    assert cluster.swap("demo-small").result["outcome"] == "unchanged"


def test_a_user_who_does_not_linger_is_told_what_to_do(cluster):
    """Asked of a real logind, whose RemoveIPC is on as everywhere."""
    cluster.lab.root("spark1", "loginctl", "disable-linger", "spark")
    told = [spark["warning"] for spark in cluster.run("probe").result["sparks"]]
    assert "Run on it, once: sudo loginctl enable-linger spark." in told[0]
    assert told[1] is None
    swapped = cluster.swap("demo-small")
    assert (swapped.code, swapped.result["outcome"]) == (0, "serving"), swapped.output
    assert any("loginctl enable-linger spark" in warning for warning in swapped.result["warnings"])
    cluster.lab.root("spark1", "loginctl", "enable-linger", "spark")
    assert [spark["warning"] for spark in cluster.run("probe").result["sparks"]] == [None, None]


def test_a_docker_that_hangs_is_named_in_bounded_time(cluster):
    assert cluster.swap("demo-small").code == 0
    cluster.lab.root("spark2", "pkill", "-STOP", "dockerd")
    refused = cluster.swap("demo-pair")  # which has to end by itself, and is not waited for without end
    assert (refused.result["outcome"], refused.result["reason"]) == ("refused", "docker"), refused.output
    assert "docker on spark2 does not answer" in refused.result["message"]
    assert cluster.chat("demo-small")


def test_a_full_disk_is_told_and_the_next_swap_works(cluster):
    folder = "/home/spark/.spark-control"
    cluster.host("spark1", "mkdir", folder)
    cluster.lab.root("spark1", "mount", "-t", "tmpfs", "-o", "size=4k,uid=1000", "tmpfs", folder)
    cluster.host("spark1", "dd", "if=/dev/zero", f"of={folder}/filler", "bs=4k", "count=9")
    full = cluster.swap("demo-small")
    assert full.code != 0
    assert "No space left on device" in full.result["message"], full.output
    cluster.lab.root("spark1", "umount", folder)
    after = cluster.swap("demo-small")
    assert after.code == 0, after.output


def test_a_host_key_that_changed_is_refused_and_said_plainly(cluster, tmp_path):
    refused = swap_with_a_strangers_key(cluster, tmp_path)
    assert refused.code != 0
    assert "@@@" not in refused.result["message"]
    assert "spark1 shows another host key than the one that is trusted" in refused.result["message"]
    assert (refused.result["outcome"], refused.result["reason"]) == ("refused", "unreachable"), refused.output
    assert cluster.containers("spark1") == []


def swap_with_a_strangers_key(cluster, tmp_path):
    """A swap by a controller that trusts other host keys than the Sparks have."""
    other, known = tmp_path / "other", tmp_path / "known_hosts"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    stranger = " ".join(other.with_suffix(".pub").read_text().split()[:2])
    known.write_text("".join(f"{address} {stranger}\n" for address in cluster.lab.hosts.values()))
    options = {"ansible_ssh_common_args": f"-o UserKnownHostsFile={known}", "ansible_control_path_dir": str(tmp_path)}
    return cluster.swap("demo-small", **options)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_that_is_killed_converges(cluster, when):
    """kill -9 of ansible-playbook before and after the launch, as on a laptop that is shut."""
    cluster.behave("demo/second", "ok", load_seconds=4)
    run = cluster.start("swap", model="demo-small", vllm_lease_seconds=5)
    lease = ("test", "-e", "/home/spark/.spark-control/lease.json")
    if when == "before":
        patiently(lambda: cluster.host("spark1", *lease).returncode == 0, "the lease")
    else:
        patiently(lambda: "vllm_node" in cluster.containers("spark1"), "the launch")
    run.kill()
    run.communicate()
    if when == "before":
        # Nobody renews its lease, so the next run has to wait for the end of it and nothing else.
        patiently(lambda: not reserved(cluster), "the end of the lease")
    again = cluster.swap("demo-small", force=when == "after")
    assert (again.code, again.result["serving"]["ready"]) == (0, True), again.output
    assert cluster.chat("demo-small")
