"""A model copied between simulated Sparks by the real rsync: both layouts, cut, cancelled, refused, damaged."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from ansible_collections.spark.control.plugins.module_utils import spark_cache

from tests.hub import Hub, share
from tests.support import wait_for
from webui.jobs import JobStore

# make test installs it, or says that it could not; where nothing may be skipped the tests run and say what is missing.
no_rsync = not shutil.which("rsync") and os.environ.get("CI") != "true"
pytestmark = pytest.mark.skipif(no_rsync, reason="rsync is not installed")

REPO = "org/name"
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
SHARDS = {f"model-{number:05}-of-00003.safetensors": 1 << 20 for number in range(1, 4)}
FILES = {"config.json": CONFIG, "extra/notes.json": {"a": 1}, **SHARDS}


def home(cluster, host) -> Path:
    return cluster.root / host / "home/.cache/huggingface"


def folder(cluster, host) -> Path:
    return home(cluster, host) / "hub" / f"models--{REPO.replace('/', '--')}"


def stage(cluster, host="spark2") -> Path:
    return folder(cluster, host).with_name(f".spark-copy-{folder(cluster, host).name}")


def look(cluster, host, name=REPO, local=()) -> dict:
    """The model as the scan of that Spark tells it."""
    return spark_cache.look(str(home(cluster, host)), name, None, local)


@pytest.fixture
def model(cluster, tmp_path):
    """A cluster whose first Spark has the model, as the real hf laid it."""
    with Hub(tmp_path / "hub", {REPO: {"files": FILES}}) as hub:
        hub.download(REPO, home(cluster, "spark1"))
    return cluster


@pytest.fixture
def store(cluster, project, monkeypatch) -> JobStore:
    """The jobs of that cluster's controller."""
    for key, value in cluster.environment.items():
        monkeypatch.setenv(key, value)
    return JobStore(Path(cluster.environment["SPARK_CONTROL_STATE"]), project)


def copy(cluster, *arguments, **variables):
    return cluster.run("copy_weights", *arguments, **{"repo": REPO, "weights_hold_seconds": 0.5, **variables})


def program(cluster, host, name, text) -> Path:
    """A program of that Spark's that stands before the machine's own."""
    path = cluster.root / host / "bin" / name
    path.with_suffix(".own").write_bytes(path.read_bytes() if path.exists() else b"")
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


def slow(cluster, host="spark1") -> Path:
    """The real rsync at 300 kB/s: the model takes ten seconds."""
    return program(cluster, host, "rsync", 'exec /usr/bin/rsync --bwlimit=300 "$@"')


def senders(cluster) -> list[int]:
    """The pids of rsync processes of this test's that were started by us."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if Path(words[0]).name == "rsync" and "--append-verify" in words and any(str(cluster.root) in w for w in words):
            found.append(int(process.name))
    return sorted(found)


def staged(cluster) -> dict[str, tuple[int, int]]:
    """{name: (inode, size)} of the blobs that wait at the far end."""
    return {path.name: (path.stat().st_ino, path.stat().st_size) for path in (stage(cluster) / "blobs").glob("*")}


def room(path: Path) -> int:
    """Bytes of the regular files below a folder, each once."""
    files = {p.stat().st_ino: p.stat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink()}
    return sum(files.values())


@pytest.mark.parametrize("layout", ["own blobs", "shared store"])
def test_a_copy_is_a_whole_model_of_its_own_and_the_second_run_changes_nothing(model, layout):
    if layout == "shared store":
        share(home(model, "spark1"), REPO)
        assert room(folder(model, "spark1")) < 1 << 20, "the weights are outside of the model's folder"
    preview = copy(model, "--check", "--diff")
    assert preview.result["outcome"] == "preview"
    assert "would be copied from spark1 to spark2: 3.0 MB" in preview.result["message"]
    assert "+spark2: model-00001-of-00003.safetensors (1.0 MB)" in preview.output
    assert not folder(model, "spark2").exists()
    assert not stage(model).exists()

    done = copy(model)
    assert (done.code, done.result["outcome"]) == (0, "copied"), done.output
    assert "verified by size" in done.result["message"]
    there = look(model, "spark2")
    assert (there["state"], there["files"]) == ("complete", len(FILES))
    assert there["weights_bytes"] == look(model, "spark1")["weights_bytes"] == 3 << 20
    assert room(folder(model, "spark2")) < (3 << 20) + 20_000, "each blob once"
    links = [path for path in folder(model, "spark2").rglob("*") if path.is_symlink()]
    assert len(links) == len(FILES)
    assert all(re.fullmatch(r"(\.\./){2,3}blobs/\w+", os.readlink(link)) for link in links)
    assert not stage(model).exists()

    again = copy(model, verify="hash")
    assert (again.result["outcome"], again.result["changed"]) == ("unchanged", False)
    assert "verified by hash" in again.result["message"]
    assert sum(row["changed"] for row in again.recap.values()) == 0


def test_cut_half_way_it_is_no_model_and_the_next_copy_goes_on_in_the_same_files(model):
    throttle = slow(model)
    run = model.start("copy_weights", repo=REPO, weights_hold_seconds=0.5)
    wait_for(lambda: sum(size for _, size in staged(model).values()) > 5 << 18, what="more than a file")
    for pid in senders(model):
        os.kill(pid, signal.SIGKILL)
    cut = model.finish(run)
    assert cut.code != 0
    assert re.search(r"The copy of org/name to spark2 failed: .*; what came stays", cut.result["message"])
    assert re.search(r"spark1: \d\.\d of 3\.0 MB", cut.output)
    before = staged(model)
    assert sum(size for _, size in before.values()) < 3 << 20
    assert look(model, "spark2")["state"] == "missing"
    throttle.unlink()
    done = copy(model)
    assert (done.code, done.result["outcome"]) == (0, "copied"), done.output
    after = {path.name: path.stat().st_ino for path in (folder(model, "spark2") / "blobs").iterdir()}
    assert {name: inode for name, (inode, _) in before.items()}.items() <= after.items()
    assert copy(model, verify="hash").result["outcome"] == "unchanged"


def test_it_outlives_the_playbook_and_a_second_run_attaches(model):
    slow(model)
    first = model.start("copy_weights", repo=REPO)
    wait_for(lambda: senders(model), what="rsync")
    first.kill()
    first.wait()
    there = senders(model)
    second = model.start("copy_weights", repo=REPO, weights_hold_seconds=0.5)
    wait_for(lambda: sum(size for _, size in staged(model).values()) > 1 << 20, what="a third of it")
    assert senders(model) == there
    done = model.finish(second)
    assert (done.code, done.result["outcome"]) == (0, "copied")


def test_a_cancel_stops_the_far_side_and_keeps_what_came(model, store):
    slow(model)
    job = store.start("copy_weights", {"repo": REPO})
    wait_for(lambda: any(size > 100_000 for _, size in staged(model).values()), what="part of a file")
    assert senders(model)
    assert store.cancel(job.id)
    wait_for(lambda: store.get(job.id).finished, what="the cancelled job's end")
    ended = store.get(job.id)
    assert ended.status == "cancelled"
    assert re.search(r"the copy to spark2 was stopped at \d\.\d of 3\.0 MB; what came stays", ended.result["message"])
    assert senders(model) == []
    assert look(model, "spark2")["state"] == "missing"
    (model.root / "spark1/bin/rsync").unlink()
    assert copy(model).result["outcome"] == "copied"


def test_what_differs_is_found_by_hash_and_brought_by_the_next_copy(model):
    assert copy(model).code == 0
    blob = next(path for path in (folder(model, "spark2") / "blobs").iterdir() if len(path.name) == 64)
    data = bytearray(blob.read_bytes())
    data[1000] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    assert copy(model).result["outcome"] == "unchanged", "its size is the same"
    found = copy(model, verify="hash")
    assert (found.code != 0, found.result["reason"]) == (True, "hash_mismatch")
    assert blob.name in found.result["message"]
    assert look(model, "spark2")["state"] != "complete"
    again = copy(model, verify="hash")
    assert (again.result["outcome"], look(model, "spark2")["state"]) == ("copied", "complete")


SSH_FAULTS = {
    "Host key verification failed.": ("host_key_unknown", "does not know the host key"),
    "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.": (
        "host_key_changed",
        "shows another host key",
    ),
    "ssh: connect to host 10.0.0.2 port 22: No route to host": ("link_down", "the connection from spark1 to spark2"),
    "spark@10.0.0.2: Permission denied (publickey).": ("no_key", "neither spark1 nor spark2"),
}
RSYNC_FAULTS = {
    "rsync: [receiver] write failed: No space left on device (28)": (11, "disk_full", "the disk is full"),
    "rsync error: something new": (99, "rsync", "rsync failed (exit code 99): rsync error: something new"),
}


def test_failures_are_told_apart(model):
    for said, (code, words) in SSH_FAULTS.items():
        for host in ("spark1", "spark2"):
            program(model, host, "ssh", f"echo '{said}' >&2; exit 255")
        run = copy(model)
        assert (run.code != 0, run.result["reason"]) == (True, code), run.result
        assert words in run.result["message"]
        assert run.result["changed"] is False
    assert model.run("demo", demo_spark_load_seconds=0.5).code == 0, "it lays the right ssh again"
    for said, (exit_code, code, words) in RSYNC_FAULTS.items():
        program(model, "spark1", "rsync", f"echo '{said}' >&2; exit {exit_code}")
        run = copy(model)
        assert (run.code != 0, run.result["reason"]) == (True, code), run.result
        assert words in run.result["message"]
        assert any(said.splitlines()[-1] in line for line in run.result["log_tail"])
    gone = next(path for path in (folder(model, "spark1") / "blobs").iterdir() if len(path.name) == 64)
    program(model, "spark1", "rsync", f'rm -f {gone}; exec /usr/bin/rsync "$@"')
    run = copy(model)
    assert run.result["reason"] == "source_vanished"
    assert not folder(model, "spark2").exists()


def test_the_side_that_is_let_in_does_it(model):
    model.fault("spark2", "ssh-down")
    done = copy(model)
    assert (done.code, done.result["outcome"]) == (0, "copied"), "spark2 pulls"
    assert look(model, "spark2")["state"] == "complete"


def test_a_local_model_with_links_and_where_it_may_lie(model):
    variables = {"local_model_dirs": ["~/models"]}
    mine = model.root / "spark1/home/models/mine"
    mine.mkdir(parents=True)
    outside = model.root / "spark1/home/outside.safetensors"
    outside.write_bytes(os.urandom(50_000))
    (mine / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (mine / "model.safetensors").symlink_to(outside)
    (mine / "twin.json").symlink_to("config.json")
    stale = model.root / "spark2/home/models/.spark-copy-mine"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(outside.read_bytes()[:20_000] + b"x" * 30_000)
    done = copy(model, repo="~/models/mine", verify="hash", **variables)
    assert (done.code, done.result["outcome"]) == (0, "copied"), done.output
    far = model.root / "spark2/home/models/mine"
    assert (far / "model.safetensors").read_bytes() == outside.read_bytes()
    assert not (far / "model.safetensors").is_symlink()
    assert os.readlink(far / "twin.json") == "config.json"
    assert copy(model, repo="~/models/mine", **variables).result["outcome"] == "unchanged"
    for name in ("/etc", "~/models/../.ssh", "~/models", "~/models/mine/sub", "a/b/c"):
        refused = copy(model, repo=name, **variables)
        assert (refused.code != 0, refused.result["changed"]) == (True, False), name


def test_what_cannot_be_asked_for(model):
    for variables, code in (
        ({"repo": "org/nothing"}, "not_whole"),
        ({"source": "spark2"}, "not_whole"),
        ({"source": "spark9"}, "no_host"),
        ({"to": ["spark9"]}, "no_host"),
        ({"to": ["spark1"]}, "no_host"),
        ({"repo": "demo/half-downloaded"}, "not_whole"),
    ):
        run = copy(model, **variables)
        assert (run.code != 0, run.result["reason"], run.result["changed"]) == (True, code, False), run.result
