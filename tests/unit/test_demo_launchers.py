"""launch-cluster.sh of the simulated Sparks in its October 2026 shape, and where September's does otherwise."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest
from ansible_collections.spark.control.plugins.module_utils import spark_docker

from tests.conftest import PROJECT
from tests.support import wait_for
from tests.unit.test_demo_spark import Demo

# As a Spark's owner may set it; without it each container that is stopped takes ten seconds.
QUICK = {"VLLM_SPARK_EXTRA_DOCKER_ARGS": "--stop-timeout 1"}


@pytest.fixture(scope="module")
def laid(tmp_path_factory):
    demo = Demo(tmp_path_factory.mktemp("demo") / "root", f"127.78.{os.getpid() % 250}")
    assert demo.playbook(demo_spark_launcher="october") == (2, 0)
    yield demo
    assert demo.playbook(demo_spark_state="absent")[1] == 0
    assert demo.processes() == []


@pytest.fixture
def demo(laid):
    yield laid
    laid.clear()
    settings(laid).unlink(missing_ok=True)


@pytest.fixture
def september(tmp_path):
    """The September shape beside a root of the October one: its launcher alone, on no host."""
    root = tmp_path / "spark"
    demo = Demo(tmp_path, "127.0.0")
    folder, files = root / "home/spark-vllm-docker", PROJECT / "roles/demo_spark/files"
    folder.mkdir(parents=True)
    (root / "address").write_text("127.0.0.11\n")
    for name, source in (("launch-cluster.sh", "launch-cluster-september.sh"), ("launcher-parts.sh",) * 2):
        (folder / name).write_bytes((files / source).read_bytes())
        (folder / name).chmod(0o755)
    return lambda *words: demo.launch(*words, host="spark")


def settings(demo):
    """.env beside the first Spark's launcher."""
    return demo.root / "spark1/home/spark-vllm-docker/.env"


def ring(demo, *order: int) -> str:
    """Four nodes joined in a ring in that order, by the last byte of their addresses, as .env has it."""
    nodes = [f"{demo.network}.{number}" for number in order]
    links = [{node: f"10.0.{at}.1", nodes[at - 3]: f"10.0.{at}.2"} for at, node in enumerate(nodes)]
    return f"CLUSTER_NODES={','.join(nodes)}\nCLUSTER_LINKS={json.dumps(links)}\n"


SERVE = ("vllm", "serve", "demo/second", "--served-model-name", "m", "--gpu-memory-utilization", "0.3")
FLAGS = [
    ("--head-port", "29600"),
    ("-j", "4"),
    ("--earlyoom-args", "-M 524288,102400"),
    ("--earlyoom-args=-r 60",),
    ("--mem-swap-limit-gb", "120"),
    ("--apply-vllm-pr", "12345"),
    ("--apply-vllm-pr", "https://github.com/vllm-project/vllm/pull/12345"),
    ("--discover",),
]


@pytest.mark.parametrize("flag", FLAGS, ids=" ".join)
def test_october_takes_flags_that_september_does_not_know(demo, september, flag):
    words = ("--solo", *flag, "--check-config", "exec", *SERVE)
    done = demo.launch(*words)
    assert (done.returncode, "Configuration Check Complete." in done.stdout) == (0, True), done.stdout + done.stderr
    assert flag[0].partition("=")[0] in demo.launch("--help").stdout
    older = september(*words)
    assert (older.returncode, "Unknown argument" in older.stdout) == (1, True), older.stdout


def test_a_pull_request_is_a_number_or_its_url_and_not_for_a_cluster_that_runs(demo):
    assert demo.launch("--solo", "--apply-vllm-pr", "; rm -rf /", "exec", *SERVE).returncode == 1
    assert demo.launch("--solo", "-d", "exec", *SERVE).returncode == 0
    late = demo.launch("--solo", "-d", "--apply-vllm-pr", "12345", "exec", *SERVE)
    assert (late.returncode, "already running" in late.stdout) == (1, True), late.stdout


@pytest.mark.parametrize("alone", [("--solo",), ("-n", "{}.11")], ids=["solo", "one node"])
def test_a_launch_on_one_node_is_on_127_0_0_1_whatever_local_ip_says(demo, alone):
    settings(demo).write_text(f"LOCAL_IP={demo.network}.11\n")
    demo.serve("demo/second", "--gpu-memory-utilization", "0.3", launcher=[w.format(demo.network) for w in alone])
    record = demo.root / "spark1/argv.json"
    seen = wait_for(lambda: record.exists() and json.loads(record.read_text())["env"], what="what vllm was given")
    told = {key: seen[key] for key in ("VLLM_HOST_IP", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_IB_DISABLE")}
    assert list(told.values()) == ["127.0.0.1", "lo", "lo", "1"], told
    record.unlink()


def test_september_listens_to_local_ip(september, tmp_path):
    (tmp_path / "spark/home/spark-vllm-docker/.env").write_text("LOCAL_IP=10.9.8.7\n")
    done = september("--solo", "--check-config")
    assert "Head Node: 10.9.8.7" in done.stdout, done.stdout


def test_its_caches_are_mounted(demo):
    assert "/.cache/b12x:/root/.cache/b12x" in demo.launch("--solo", "--check-config").stdout
    assert "/root/.cache/b12x" not in demo.launch("--solo", "--no-cache-dirs", "--check-config").stdout


def test_images_are_compared_by_content(demo):
    path = demo.root / "spark2/docker/images.json"
    kept = path.read_text()
    first, *rest = json.loads(kept)
    pair = ("-n", f"{demo.network}.11,{demo.network}.12", "-d", "exec", "true")
    try:
        path.write_text(json.dumps([first | {"id": "sha256:" + "5" * 64, "layers": [first["id"]]}, *rest]))
        same = demo.launch(*pair)
        assert (same.returncode, "matching image content" in same.stdout) == (0, True), same.stdout + same.stderr
        demo.clear()
        path.write_text(json.dumps([first | {"id": "sha256:" + "5" * 64}, *rest]))
        other = demo.launch(*pair)
        assert (other.returncode, "image mismatch on worker" in other.stdout) == (1, True), other.stdout
        assert demo.docker("ps", "-q").stdout == ""
    finally:
        path.write_text(kept)


@pytest.mark.parametrize(
    ("order", "nodes", "sizes", "said"),
    [
        ((11, 12, 13, 14), (11, 12, 13, 14), ("-tp", "4"), "SSH to"),
        ((11, 12, 13, 14), (11, 13, 12, 14), ("-tp", "4"), "in the ring's order"),
        ((11, 12, 13, 14), (11, 12, 13), ("-tp", "3"), "break the ring"),
        ((11, 12, 13, 14), (11, 12), ("-tp", "2"), "SSH to"),
        ((11, 12, 13, 14), (11, 13), ("-tp", "2"), "break the ring"),
        ((11, 12, 13, 14), (11, 12, 13, 14), ("-tp", "2"), "SSH to"),
        ((11, 12, 13, 14), (11, 12, 13, 14), ("-tp", "2", "-pp", "2"), "tensor parallel only"),
        ((11, 12, 13, 14), (11, 12, 13, 15), ("-tp", "4"), "not in the saved topology"),
        ((12, 11, 13, 14), (11, 12, 14, 13), ("-tp", "4"), "first of CLUSTER_NODES"),
    ],
)
def test_a_ring_is_launched_in_its_order_head_first_and_shares_tensors_only(demo, order, nodes, sizes, said):
    settings(demo).write_text(ring(demo, *order))
    addresses = ",".join(f"{demo.network}.{number}" for number in nodes)
    done = demo.launch("-n", addresses, "--check-config", "exec", *SERVE, *sizes)
    assert said in done.stdout, done.stdout
    # The third node and the fourth are not there: a ring that is right fails at their SSH, and no earlier.
    whole = said == "SSH to" and len(nodes) == 2
    assert done.returncode == (0 if whole else 1)


def test_a_rings_containers_are_told_that_it_is_one(demo, tmp_path):
    """Checked only: four Sparks are not there, so an ssh that reaches everybody stands in for theirs."""
    (tmp_path / "ssh").write_text("#!/bin/sh\n")
    (tmp_path / "ssh").chmod(0o755)
    settings(demo).write_text(ring(demo, 11, 12, 13, 14))
    path = {"PATH": f"{tmp_path}:{demo.environment()['PATH']}"}
    done = demo.run(launcher(demo), "--check-config", "exec", *SERVE, "-tp", "4", env=path)
    assert (done.returncode, "-e NCCL_ALGO=Ring" in done.stdout) == (0, True), done.stdout
    two = demo.run(launcher(demo), "--check-config", "exec", *SERVE, "-tp", "2", env=path)
    assert (two.returncode, "NCCL_ALGO" in two.stdout) == (0, False), "two that are joined are no ring"


def test_a_mod_that_fails_stops_the_cluster_and_is_told_also_in_the_background(demo, tmp_path):
    mod = tmp_path / "broken-mod"
    mod.mkdir()
    (mod / "run.sh").write_text("#!/bin/bash\nexit 3\n")
    done = demo.run(launcher(demo), "--solo", "-d", "--apply-mod", mod, "exec", *SERVE, env=QUICK)
    assert (done.returncode, "Patch script failed" in done.stdout) == (1, True), done.stdout
    assert demo.docker("ps", "-aq").stdout == ""


def test_a_container_that_a_worker_cannot_run_takes_the_heads_with_it(demo):
    (demo.root / "spark2/faults/run-fails").write_text("no such device")
    pair = ("-n", f"{demo.network}.11,{demo.network}.12")
    done = demo.run(launcher(demo), *pair, "-d", "exec", *SERVE, "-tp", "2", env=QUICK)
    assert (done.returncode, "no such device" in done.stderr) == (1, True), done.stdout + done.stderr
    assert demo.docker("ps", "-aq").stdout == ""


def launcher(demo) -> str:
    return str(demo.root / "spark1/home/spark-vllm-docker/launch-cluster.sh")


def test_the_settings_name_wins_over_the_flags(demo):
    settings(demo).write_text("CONTAINER_NAME=from-settings\n")
    assert demo.launch("--solo", "--name", "asked", "-d", "start").returncode == 0
    assert demo.docker("ps", "--format", "{{.Names}}").stdout == "from-settings\n"


def test_a_value_with_a_space_breaks_docker_run(demo):
    settings(demo).write_text("CONTAINER_NOTE=two words\n")
    done = demo.launch("--solo", "-d", "exec", *SERVE)
    assert (done.returncode, "Unable to find image" in done.stderr) == (1, True), done.stdout + done.stderr
    assert demo.docker("ps", "-aq").stdout == ""


def test_check_config_finds_workers_without_ssh_and_mods_that_are_not_there(demo):
    pair = ("-n", f"{demo.network}.11,{demo.network}.12", "--check-config")
    assert demo.launch(*pair).returncode == 0
    (demo.root / "spark2/faults/ssh-down").touch()
    shut = demo.launch(*pair)
    assert (shut.returncode, f"Passwordless SSH to {demo.network}.12 failed" in shut.stdout) == (1, True), shut.stdout
    lost = demo.launch("--solo", "--apply-mod", "mods/none", "--check-config")
    assert (lost.returncode, "Mod path 'mods/none' does not exist" in lost.stdout) == (1, True), lost.stdout


def test_setup_saves_what_the_next_launch_reads(demo):
    pair = f"{demo.network}.11,{demo.network}.12"
    assert demo.launch("-n", pair, "--setup").returncode == 0
    assert f"CLUSTER_NODES={pair}\n" in settings(demo).read_text()
    done = demo.launch("--check-config")
    assert (done.returncode, f"Worker Nodes: {demo.network}.12" in done.stdout) == (0, True), done.stdout


def test_a_container_with_earlyoom_has_a_shell_for_pid_1_that_serves_nothing(demo):
    assert demo.launch("--solo", "--earlyoom-args", "-r 60", "-d", "start").returncode == 0
    found = spark_docker.rows(demo.docker("top", "vllm_node", "-eo", "pid,args").stdout.encode())
    assert found[0]["args"].startswith("bash -c "), found
    assert spark_docker.working(found) == []


def test_without_d_it_stays_in_front_and_stops_its_containers_when_the_server_ends(demo):
    process = subprocess.Popen(
        [launcher(demo), "--solo", "exec", *SERVE],
        env=demo.environment() | QUICK,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    ask = ("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader")
    pid = wait_for(lambda: demo.run(*ask).stdout.strip(), what="the server's memory")
    assert process.poll() is None
    os.kill(int(pid), signal.SIGKILL)
    assert process.wait(30) != 0
    assert demo.docker("ps", "-aq").stdout == ""
