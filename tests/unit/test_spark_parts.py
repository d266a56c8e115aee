"""The parts that run on a Spark, each by itself: lease, load progress, docker's times."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest
from ansible_collections.spark.control.plugins.module_utils import (
    spark_docker,
    spark_host,
    spark_launcher,
    spark_lease,
    spark_run,
    spark_serving,
)
from ansible_collections.spark.control.plugins.modules import gpu_lease

from tests.conftest import PROJECT
from webui.jobs import processes

REPO = "org/model"
SHAPES = ("january", "september", "october")


def lease(name, **other):
    """A lease as the module asks for it."""
    return {"id": name, "holder": name, "purpose": "", "token_hash": None} | other


def test_of_many_that_take_the_lease_at_once_one_gets_it(tmp_path):
    won, gate = [], threading.Barrier(8)

    def take(number):
        gate.wait()
        try:
            spark_lease.take(str(tmp_path), lease(f"n{number}"), 60)
            won.append(number)
        except spark_lease.Leased:
            pass

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert spark_lease.read(str(tmp_path))["id"] == f"n{won[0]}"


def test_a_lease_ends_by_itself(tmp_path):
    spark_lease.take(str(tmp_path), lease("a"), -1)
    assert spark_lease.read(str(tmp_path)) is None
    spark_lease.take(str(tmp_path), lease("b"), 60)
    assert not spark_lease.renew(str(tmp_path), "a", 60)


def test_a_lease_is_given_back_by_its_id_or_its_token(tmp_path):
    folder = str(tmp_path)
    spark_lease.take(folder, lease("a", token_hash="ab"), 60)
    with pytest.raises(spark_lease.Leased, match="reserved by a, for another 60 s"):
        spark_lease.release(folder, "b", "cd")
    assert spark_lease.release(folder, None, "ab")["id"] == "a"
    assert spark_lease.release(folder, "a") is None


def test_a_dead_holders_lease_is_replaced_and_a_living_ones_only_by_force(tmp_path):
    folder = str(tmp_path)
    spark_lease.take(folder, lease("a"), 60)
    with pytest.raises(spark_lease.Leased):
        spark_lease.take(folder, lease("b"), 60)
    spark_lease.take(folder, lease("b"), 60, supersedes=["a"])
    spark_lease.take(folder, lease("c"), 60, force=True)
    assert spark_lease.read(folder)["id"] == "c"


@pytest.mark.parametrize(
    ("asks", "room"),
    [
        ({"identity": "a"}, True),
        ({"identity": "b"}, False),
        ({"identity": None}, False),
        ({"identity": "b", "token_hash": "ab"}, True),
        ({"identity": "b", "token_hash": "cd"}, False),
        ({"identity": "b", "supersedes": ["a"]}, True),
        ({"identity": "b", "force": True}, True),
    ],
)
def test_whom_a_lease_leaves_room_is_judged_by_one_rule(asks, room):
    assert spark_lease.yields(lease("a", token_hash="ab"), **asks) is room
    assert spark_lease.yields(None, **asks)


def test_a_lease_without_a_token_is_nobodys_by_a_missing_one():
    assert not spark_lease.yields(lease("a"), "b", token_hash=None)


@pytest.mark.parametrize(
    "wish",
    [
        {"id": "b", "holder": "b"},
        {"id": "b", "holder": "b", "token_hash": "ab"},
        {"id": "b", "holder": "b", "supersedes": ["a"]},
        {"id": "a", "holder": "a", "seconds": 300},
        {"state": "absent", "id": "b", "supersedes": ["a"]},
        {"state": "absent", "token_hash": "ab"},
        {"state": "absent", "id": "b", "force": True},
    ],
)
def test_the_preview_of_a_lease_says_what_happens_then(tmp_path, wish):
    """Whether the module refuses, and the lease afterwards, with --check and without."""
    told = []
    for check in (True, False):
        folder = str(tmp_path / str(check))
        spark_lease.take(folder, lease("a", token_hash="ab"), 60)
        wanted = {"state": "present", "id": None, "holder": None, "purpose": "", "token_hash": None, "run": None}
        wanted["seconds"] = 120
        wanted |= {"supersedes": [], "force": False, "state_dir": folder} | wish
        before = spark_lease.read(folder)
        try:
            after = gpu_lease.settle(wanted, before, check)
        except spark_lease.Leased as refusal:
            after = str(refusal)
        told.append(after if not isinstance(after, dict) else {key: after[key] for key in ("id", "holder", "purpose")})
        if check:
            assert spark_lease.read(folder)["expires"] == before["expires"]
    assert told[0] == told[1]


def test_a_spoilt_lease_file_is_no_lease(tmp_path):
    for text in ("", "{", "[]", '{"id": 1, "holder": "x", "expires": 9e18}', '{"expires": "soon"}'):
        (tmp_path / "lease.json").write_text(text)
        assert spark_lease.read(str(tmp_path)) is None


LOG = """INFO 11-22 07:40:01 [api_server.py:1880] vLLM API server version 0.19.1
INFO 11-22 07:40:09 [gpu_model_runner.py:2602] Starting to load model org/model...
Loading safetensors checkpoint shards:   0% Completed | 0/8 [00:00<?, ?it/s]
Loading safetensors checkpoint shards:  50% Completed | 4/8 [00:05<00:05,  1.23it/s]
INFO 11-22 07:40:30 [default_loader.py:267] Loading weights took 20.21 seconds
INFO 11-22 07:40:50 [monitor.py:34] torch.compile takes 15.1 s in total
INFO 11-22 07:40:51 [kv_cache_utils.py:1087] GPU KV cache size: 1,315,008 tokens
Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  50%|#####     | 33/67 [00:02<00:01, 16.5it/s]
INFO 11-22 07:41:02 [core.py:210] init engine (profile, create kv cache, warmup model) took 30.1 seconds
INFO:     Application startup complete."""


def test_the_log_says_how_far_a_model_has_loaded():
    lines = LOG.splitlines()
    told = [spark_serving.progress("\n".join(lines[: count + 1])) for count in range(len(lines))]
    assert told[3] == ("loading weights", 38)
    assert told[7] == ("capturing graphs", 90)
    assert told[-1] == ("answering", 99)
    assert [percent for _, percent in told] == sorted(percent for _, percent in told)
    assert spark_serving.progress("") == ("starting", 1)


def test_the_bar_of_one_line_counts_by_its_last_state():
    line = "\r".join(f"Loading safetensors checkpoint shards: {percent:3}% Completed" for percent in (0, 25, 75))
    assert spark_serving.progress(line) == ("loading weights", 54)


def test_the_last_lines_are_what_a_person_wants():
    log = b'ok\n\x1b[31mred\x1b[0m\n1.2.3.4 - "GET /health HTTP/1.1" 200 OK\n 10%\r 100% done\n\n'
    assert spark_serving.last_lines(log) == ["ok", "red", " 100% done"]


def test_dockers_times():
    assert spark_docker.epoch("2026-11-22T08:00:00.123456789Z") == pytest.approx(1795334400.123456)
    assert spark_docker.epoch("2026-11-22T09:00:00+01:00") == 1795334400.0
    assert spark_docker.epoch("0001-01-01") == 0.0


def test_memory_and_disk(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  127535616 kB\nMemFree: 1 kB\nMemAvailable: 100000 kB\n")
    assert spark_host.memory(str(tmp_path / "meminfo")) == {"total": 127535616 * 1024, "available": 102400000}
    assert spark_host.disk(str(tmp_path / "not/yet/there"))["total"] > 0


def test_a_folder_without_a_launcher(tmp_path):
    assert spark_launcher.look(str(tmp_path))["present"] is False


def lay_launcher(root, shape: str) -> str:
    """A stand-in launcher of roles/demo_spark in its folder, as the role lays it; returns the folder."""
    folder, files = root / "home/spark-vllm-docker", PROJECT / "roles/demo_spark/files"
    folder.mkdir(parents=True)
    shutil.copy(files / f"launch-cluster-{shape}.sh", folder / "launch-cluster.sh")
    shutil.copy(files / "launcher-parts.sh", folder)
    (root / "address").write_text("127.0.0.11\n")
    return str(folder)


def test_a_launchers_shape_is_told_by_what_it_offers(tmp_path):
    told = {shape: spark_launcher.look(lay_launcher(tmp_path / shape, shape)) for shape in SHAPES}
    assert all(found["present"] for found in told.values())
    assert {shape: found["shape"] for shape, found in told.items()} == {shape: shape for shape in SHAPES}


@pytest.mark.parametrize(
    ("shape", "text", "told"),
    [
        ("october", "", (None, [])),
        ("october", "CLUSTER_NODES=10.0.0.1,10.0.0.2\nCONTAINER_HF_TOKEN=abc\n", (None, [])),
        ("october", "# CONTAINER_NAME=old\nCONTAINER_NAME = 'mine'\n", ("mine", [])),
        ("september", 'CONTAINER_NAME="mine"\nCONTAINER_NOTE="two words"\n', ("mine", ["CONTAINER_NOTE"])),
        ("september", "CONTAINER_NOTE= padded \nETH_IF=two words\nCONTAINER_A=b=c d", (None, ["CONTAINER_A"])),
        ("january", "CONTAINER_NAME=mine\n", (None, [])),
    ],
)
def test_what_its_settings_say_against_a_launch_is_read(tmp_path, shape, text, told):
    folder = lay_launcher(tmp_path, shape)
    Path(folder, ".env").write_text(text)
    found = spark_launcher.look(folder)["dot_env"]
    assert (found["container"], found["spaced"]) == told


@pytest.mark.parametrize(("kind", "same"), [("Id", True), ("RepoTags", True), ("RootFS", False), ("Config", False)])
def test_an_images_content_is_what_runs(tmp_path, monkeypatch, kind, same):
    image = {"Id": "sha256:1", "RepoTags": ["a"], "Os": "linux", "Architecture": "arm64"}
    image |= {"RootFS": {"Type": "layers", "Layers": ["sha256:2"]}, "Config": {"Env": ["A=1"], "Labels": None}}
    changed = image | {kind: {"Layers": ["sha256:3"]} if kind == "RootFS" else {"Env": ["A=2"]}}
    changed = changed if not same else image | {kind: "else", "Config": {"Env": ["A=1"], "Volumes": {}}}
    told = []
    for number, found in enumerate((image, changed)):
        program = tmp_path / str(number) / "docker"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps([found])}\nEND\n")
        program.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
            told.append(spark_docker.image("vllm-node"))
    assert (told[0]["content"] == told[1]["content"]) is same
    assert told[0]["id"] == "sha256:1"


def top(*commands: str) -> list[dict]:
    """What `docker top` prints of these processes, read."""
    lines = ["PID COMMAND", *(f"{pid} {args}" for pid, args in enumerate(commands, 100))]
    return spark_docker.rows("\n".join(lines).encode())


RAY_NODE = [
    "/usr/bin/python3 /usr/local/bin/ray start --block --head --port 6379",
    "/usr/lib/python3/dist-packages/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp/ray",
    "/usr/lib/python3/dist-packages/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp/ray",
    "/usr/bin/python3 -u /usr/lib/python3/dist-packages/ray/dashboard/agent.py --node-ip-address=10.0.0.1",
    "/usr/bin/python3 -u /usr/lib/python3/dist-packages/ray/_private/log_monitor.py --logs-dir=/tmp/ray",
    "ray::IDLE",
    "/usr/bin/python3 /usr/local/bin/ray status",
]


@pytest.mark.parametrize(
    "args",
    [
        "/usr/bin/python3 /usr/local/bin/vllm serve /models/ray/start --port 8888",
        "VLLM::EngineCore",
        "ray::RayWorkerWrapper.execute_method",
        "bash -c vllm serve x --distributed-executor-backend ray",
    ],
)
def test_what_serves_is_told_from_what_only_keeps_a_node_open(args):
    assert [process["pid"] for process in spark_docker.working(top("sleep infinity", *RAY_NODE, args))] == [108]


def test_a_shell_that_waits_for_earlyoom_is_no_server():
    shell = 'bash -c if ! command -v earlyoom; then sleep 1; fi; exec earlyoom "$@" earlyoom -M 524288,102400'
    assert spark_docker.working(top(shell, "earlyoom -M 524288")) == []


def test_a_ray_node_without_a_model_is_no_server():
    assert spark_docker.working(top(*RAY_NODE)) == []
    assert spark_docker.ray_node(top(*RAY_NODE))
    assert not spark_docker.ray_node(top("sleep infinity", "vllm serve /models/ray start", RAY_NODE[-1]))


@pytest.mark.parametrize(
    ("log", "named"),
    [
        (b"RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:544] Connection closed by peer", True),
        (b"torch.distributed.DistBackendError: ncclRemoteError: A call failed possibly due to a network error", True),
        (b"torch.OutOfMemoryError: CUDA out of memory.", False),
    ],
)
def test_a_head_that_fell_with_a_worker_names_it(log, named):
    said, nodes = "It stopped by itself while it loaded.", [{"host": "spark1"}, {"host": "spark2"}, {"host": "spark3"}]
    told = spark_serving.fallen(said, b"Loading weights\n" + log + b"\n", nodes)
    assert told == (said[:-1] + ", when it lost the connection to spark2 or spark3." if named else said)
    assert spark_serving.fallen(said, log, nodes[:1]) == said


def test_a_run_of_this_machine_is_known_to_be_over():
    script = "import sys; sys.path[0:0] = sys.argv[1:]; import os, subprocess\n"
    script += "from ansible_collections.spark.control.plugins.module_utils import spark_run\n"
    script += "print(spark_run.run_id(), flush=True); sys.stdin.read()"
    shell = ["bash", "-c", '"$@"; true', "bash", sys.executable, "-c", script, *sys.path]
    # As ansible-playbook and the child in which a task runs.
    with subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        told = run.stdout.readline().strip()
        assert not spark_run.is_over(told)
        assert not processes.is_over(told)  # the page knows it by the same id
        run.stdin.close()
    assert spark_run.is_over(told)
    assert processes.is_over(told)
    boot, space, pid, began = re.fullmatch(r"run-(.{36})-(\d+)-(\d+)-(\d+)", told).groups()
    assert not spark_run.is_over(f"run-{boot[::-1]}-{space}-{pid}-{began}")  # another machine, or an earlier boot
    assert not spark_run.is_over(f"run-{boot}-1{space}-{pid}-{began}")  # in a container
    assert spark_run.is_over(f"run-{boot}-{space}-{os.getpid()}-{began}")  # the number was given away since
    for other in (None, "", "20261122-080000-ab12", "run-x-1-2", str(uuid.uuid4())):
        assert not spark_run.is_over(other)
        assert not processes.is_over(other)
