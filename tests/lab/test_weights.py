"""Weights over a real sshd, docker, rsync and hf: downloaded, copied, deleted, set up and served."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.hub import Hub
from tests.lab.conftest import patiently
from webui.jobs import JobStore

# Each file is a group of its own: whichever worker is free takes it, with a lab of its own.
pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("weights")]

REAL = "org/real"  # 12 MB on spark1 (lab.MODELS)
REPO = "org/name"
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
SHARDS = {f"model-{number:05}-of-00008.safetensors": 1 << 19 for number in range(1, 9)}
TOKEN = "hf_theOneThatIsRight1234567890"
HOME = "/home/spark"
CACHE = f"{HOME}/.cache/huggingface"
LIB = "import sys; sys.path.insert(0, '/opt/lab'); import spark_host"


@pytest.fixture
def hub(lab, tmp_path):
    """A hub where the lab's hosts reach it, at 1 MB/s; one of its repos is gated."""
    gated = {"files": {"config.json": CONFIG, "model.safetensors": 1 << 19}, "gated": True}
    spec = {REPO: {"files": {"config.json": CONFIG, **SHARDS}}, "org/gated": gated}
    with Hub(tmp_path / "hub", spec, rate=1_000_000, token=TOKEN, host=f"{lab.network}.1") as made:
        yield made
        made.process.send_signal(signal.SIGCONT)


@pytest.fixture
def recipes(lab):
    """The lab's own folder of recipes, before the simulation's; what a test saves there goes with it."""
    folder = lab.state / "recipes"
    before = set(folder.iterdir())
    shared = json.loads((lab.inventory / "hosts.yml").read_text())["all"]["vars"]
    yield [str(folder), *(path for path in shared["recipe_dirs"] if path != str(folder))]
    for path in set(folder.iterdir()) - before:
        path.unlink()


def folder(repo: str) -> str:
    return f"{CACHE}/hub/models--{repo.replace('/', '--')}"


def shell(cluster, host: str, command: str) -> str:
    """What a command of that host's user printed."""
    return cluster.host(host, "sh", "-c", command).stdout.strip()


def sizes(cluster, host: str, place: str) -> dict[str, tuple[int, int]]:
    """{name: (inode, size)} of the regular files right in a folder."""
    rows = shell(cluster, host, f"find {place} -maxdepth 1 -type f -printf '%f %i %s\\n'").splitlines()
    return {name: (int(inode), int(size)) for name, inode, size in map(str.split, rows)}


def whole(cluster) -> int:
    """How many files have come whole to the head."""
    return sum(not name.endswith(".incomplete") for name in sizes(cluster, "spark1", f"{folder(REPO)}/blobs"))


def staged(cluster) -> dict[str, tuple[int, int]]:
    """The files of a copy that wait at the far end."""
    return sizes(cluster, "spark2", f"{CACHE}/hub/.spark-copy-models--org--real/blobs")


def amount(found: dict[str, tuple[int, int]]) -> int:
    return sum(size for _, size in found.values())


def free(cluster, host: str) -> int:
    """Bytes that are free for the user where the cache is."""
    blocks, size = shell(cluster, host, f"stat -f -c '%a %S' {CACHE}").split()
    return int(blocks) * int(size)


def small_disk(cluster, host: str, size: str) -> None:
    """A disk of its own for that host's cache, empty; gone after the test."""
    options = ("-t", "tmpfs", "-o", f"size={size},uid=1000,gid=1000")
    cluster.lab.root(host, "mount", *options, "tmpfs", CACHE)


def slow_rsync(cluster, speed: int = 500) -> None:
    """The head's rsync at that many kB/s: at 500 the model takes 24 seconds."""
    text = b'#!/bin/sh\nexec /usr/bin/rsync --bwlimit=%d "$@"\n' % speed
    cluster.lab.root("spark1", "sh", "-c", "cat >/usr/local/bin/rsync; chmod 755 /usr/local/bin/rsync", input=text)


def full_speed(cluster) -> None:
    cluster.lab.root("spark1", "rm", "/usr/local/bin/rsync")


def copy(cluster, *arguments, **variables):
    return cluster.run("copy_weights", *arguments, **{"repo": REAL, "weights_hold_seconds": 0.5, **variables})


def download(cluster, hub, start=False, **variables):
    begin = cluster.start if start else cluster.run
    # hf writes in pieces of 10 MB, so progress here is by whole files.
    variables = {"repo": REPO, "hf_endpoint": hub.url, "weights_download_workers": 1, **variables}
    return begin("download_weights", **{"weights_hold_seconds": 0.5, **variables})


def downloaders(cluster) -> list[str]:
    found = cluster.host("spark1", "docker", "ps", "-aq", "--no-trunc", "--filter", "name=spark-control-download-")
    return found.stdout.split()


# --- downloads --------------------------------------------------------------------------------------------------------


def test_a_download_tells_its_progress_is_copied_on_and_the_second_run_changes_nothing(cluster, hub):
    done = download(cluster, hub, copy_to=["spark2"])
    assert (done.code, done.result["outcome"]) == (0, "downloaded"), done.output
    assert (done.result["copy"]["outcome"], done.result["copy"]["source"]) == ("copied", "spark1")
    assert len(set(re.findall(r"spark1: (\d\.\d) of 4\.0 MB", done.output))) >= 3, done.output
    path = done.result["weights"]["path"]
    for host in ("spark1", "spark2"):
        there = shell(cluster, host, f"cd {path} && find -L . -type f -user spark -printf '%f %s\\n'").splitlines()
        assert {name: int(size) for name, size in map(str.split, there) if name != "config.json"} == SHARDS
    assert downloaders(cluster) == []
    again = download(cluster, hub, copy_to=["spark2"])
    assert (again.result["outcome"], again.result["changed"]) == ("unchanged", False), again.output
    assert sum(row["changed"] for row in again.recap.values()) == 0
    shell(cluster, "spark2", f"rm -r {folder(REPO)}")
    copied = download(cluster, hub, copy_to=["spark2"])
    assert (copied.result["outcome"], copied.result["changed"]) == ("copied", True), copied.output


def test_a_download_outlives_ssh_and_the_next_run_attaches(cluster, hub):
    first = download(cluster, hub, start=True)
    patiently(lambda: whole(cluster) >= 2, "some whole files")
    hub.process.send_signal(signal.SIGSTOP)
    cluster.log_out()
    cut = cluster.finish(first)
    assert (cut.code != 0, cut.result["reason"]) == (True, "unreachable"), cut.output
    assert "The download goes on there; run it again to see how far it is." in cut.result["message"]
    (container,) = downloaders(cluster)
    looks = f"stat -c %Y.%y {HOME}/.spark-control/transfers/*.json"
    before = shell(cluster, "spark1", looks)
    second = download(cluster, hub, start=True)
    patiently(lambda: shell(cluster, "spark1", looks) != before, "the second run's first look")
    assert downloaders(cluster) == [container]
    # The lock is held in another container's namespaces, and nothing has been written for a while.
    menu = {card["name"]: card for card in cluster.run("menu").result["models"]}
    assert (menu[REPO]["status"], menu[REPO]["hosts"]["spark1"]["state"]) == ("downloading", "downloading")
    assert cluster.run("delete_weights", repo=REPO).result["reason"] == "downloading"
    hub.process.send_signal(signal.SIGCONT)
    done = cluster.finish(second)
    assert (done.code, done.result["outcome"], done.result["weights"]["state"]) == (0, "downloaded", "complete")
    assert downloaders(cluster) == []


def test_a_token_reaches_hf_and_nothing_else(cluster, hub, tmp_path):
    assert download(cluster, hub, repo="org/gated").result["reason"] == "no_token"
    secret = tmp_path / "token"
    secret.write_text(TOKEN + "\n")
    secret.chmod(0o600)
    run = download(cluster, hub, start=True, repo="org/gated", token_file=str(secret))
    patiently(lambda: downloaders(cluster), "the container")
    seen = cluster.host("spark1", "docker", "inspect", *downloaders(cluster)).stdout
    seen += cluster.lab.root("spark1", "ps", "-eo", "args")
    done = cluster.finish(run)
    assert (done.code, done.result["outcome"]) == (0, "downloaded"), done.output
    assert "HF_TOKEN_PATH" in seen
    assert TOKEN not in seen + done.output
    assert shell(cluster, "spark1", f"grep -rlF {TOKEN} {HOME}") == ""


def test_a_disk_that_fills_up_in_mid_download_is_told_and_the_next_run_takes_it_up(cluster, hub):
    small_disk(cluster, "spark1", "6m")
    run = download(cluster, hub, start=True)
    patiently(lambda: whole(cluster) >= 2, "some whole files")
    shell(cluster, "spark1", f"dd if=/dev/zero of={CACHE}/filler bs=64k")
    full = cluster.finish(run)
    assert (full.code != 0, full.result["reason"]) == (True, "disk_full"), full.output
    assert re.search(r"the disk is full; .* of 4\.0 MB are there and stay", full.result["message"])
    kept = sizes(cluster, "spark1", f"{folder(REPO)}/blobs")
    shell(cluster, "spark1", f"rm {CACHE}/filler")
    done = download(cluster, hub)
    assert (done.code, done.result["outcome"]) == (0, "downloaded"), done.output
    assert kept.items() <= sizes(cluster, "spark1", f"{folder(REPO)}/blobs").items()


# --- copies -----------------------------------------------------------------------------------------------------------


def test_a_copy_goes_over_the_mesh_key_and_the_second_run_changes_nothing(cluster):
    preview = copy(cluster, "--check")
    assert preview.result["outcome"] == "preview", preview.output
    done = copy(cluster)
    assert (done.code, done.result["outcome"], done.result["source"]) == (0, "copied", "spark1"), done.output
    blobs = sizes(cluster, "spark2", f"{folder(REAL)}/blobs")
    assert {name: size for name, (_, size) in blobs.items()} == {
        name: size for name, (_, size) in sizes(cluster, "spark1", f"{folder(REAL)}/blobs").items()
    }
    sums = shell(cluster, "spark2", f"cd {folder(REAL)}/blobs && sha256sum *").split("\n")
    assert all(re.fullmatch(r"(\w{64})  \1", line) for line in sums)
    for verify in ("size", "hash"):
        again = copy(cluster, verify=verify)
        assert (again.code, again.result["outcome"], again.result["changed"]) == (0, "unchanged", False), again.output
        assert sum(row["changed"] for row in again.recap.values()) == 0
    assert sizes(cluster, "spark2", f"{folder(REAL)}/blobs") == blobs


def test_a_worker_that_is_unplugged_in_mid_copy_is_named_and_the_next_copy_goes_on(cluster):
    slow_rsync(cluster)
    run = cluster.start("copy_weights", repo=REAL, weights_hold_seconds=0.5)
    patiently(lambda: amount(staged(cluster)) > 5 << 20, "more than a file")
    cluster.unplug("spark2")
    before = staged(cluster)
    cut = cluster.finish(run)
    assert (cut.code != 0, cut.result["reason"]) == (True, "link_down"), cut.output
    assert "the connection from spark1 to spark2 is down; what came stays" in cut.result["message"]
    cluster.plug("spark2")
    full_speed(cluster)
    done = copy(cluster, verify="hash")
    assert (done.code, done.result["outcome"]) == (0, "copied"), done.output
    after = sizes(cluster, "spark2", f"{folder(REAL)}/blobs")
    assert {name: inode for name, (inode, _) in before.items()}.items() <= {
        name: inode for name, (inode, _) in after.items()
    }.items()


def test_a_copy_outlives_ssh_and_a_cancel_ends_it_at_both_ends(cluster, monkeypatch):
    slow_rsync(cluster, 100)  # it is still under way when a slow machine has come to the second run
    run = cluster.start("copy_weights", repo=REAL, weights_hold_seconds=0.5)
    patiently(lambda: staged(cluster), "the first of it")

    def cut_off() -> bool:
        """Whether the run has ended; a connection that is cut between two looks is only made again."""
        cluster.lab.close_connections()
        cluster.lab.root("spark1", "pkill", "-KILL", "-f", "sshd: spark", check=False)
        return run.poll() is not None

    patiently(cut_off, "the end of the run without its connection")
    cut = cluster.finish(run)
    assert cut.result["reason"] == "unreachable", cut.output
    assert "The copy goes on there; run it again to see how far it is." in cut.result["message"]
    running = shell(cluster, "spark1", "pgrep -x rsync")
    assert running
    for key, value in cluster.environment.items():
        monkeypatch.setenv(key, value)
    store = JobStore(Path(cluster.environment["SPARK_CONTROL_STATE"]), PROJECT)
    job = store.start("copy_weights", {"repo": REAL})
    patiently(lambda: (store.get(job.id).view().percent or 0) > 0, "progress on the page")
    assert shell(cluster, "spark1", "pgrep -x rsync") == running
    assert store.cancel(job.id)
    patiently(lambda: store.get(job.id).finished, "the cancelled job's end")
    ended = store.get(job.id)
    assert ended.status == "cancelled"
    assert "the copy to spark2 was stopped at" in ended.result["message"]
    for host in ("spark1", "spark2"):
        patiently(lambda host=host: not shell(cluster, host, "pgrep -x rsync"), f"the end of rsync on {host}")
    assert staged(cluster)


def test_a_workers_host_key_that_the_head_does_not_trust_is_told_and_mended(cluster):
    known, worker = f"{HOME}/.ssh/known_hosts", cluster.lab.hosts["spark2"]
    kept = shell(cluster, "spark1", f"cat {known}")
    try:
        shell(cluster, "spark1", f"ssh-keygen -R {worker}")
        unknown = copy(cluster)
        assert (unknown.result["reason"], unknown.result["changed"]) == ("host_key_unknown", False), unknown.output
        own = shell(cluster, "spark1", "cut -d' ' -f1,2 ~/.ssh/id_ed25519.pub")
        shell(cluster, "spark1", f"echo '{worker} {own}' >>{known}")
        other = copy(cluster)
        assert (other.result["reason"], other.result["changed"]) == ("host_key_changed", False), other.output
        assert "spark2 shows another host key than the one that spark1 trusts" in other.result["message"]
        assert cluster.run("mesh_ssh_keys").code == 0
        assert copy(cluster).result["outcome"] == "copied"
    finally:
        cluster.lab.root("spark1", "tee", known, input=f"{kept}\n".encode())


def test_a_far_disk_that_is_too_small_is_told_first_and_one_that_fills_up_is_told_too(cluster):
    small_disk(cluster, "spark2", "8m")
    refused = copy(cluster)
    assert (refused.result["reason"], refused.result["changed"]) == ("disk_full", False), refused.output
    assert f"{REAL} needs 12 MB more on spark2, and 8.0 MB are free" in refused.result["message"]
    cluster.lab.root("spark2", "umount", CACHE)
    small_disk(cluster, "spark2", "16m")
    slow_rsync(cluster)
    run = cluster.start("copy_weights", repo=REAL, weights_hold_seconds=0.5)
    patiently(lambda: amount(staged(cluster)) > 1 << 20, "a part of it")
    shell(cluster, "spark2", f"dd if=/dev/zero of={CACHE}/filler bs=64k")
    full = cluster.finish(run)
    assert (full.code != 0, full.result["reason"]) == (True, "disk_full"), full.output
    assert "the disk is full; what came stays" in full.result["message"]
    shell(cluster, "spark2", f"rm {CACHE}/filler")
    full_speed(cluster)
    done = copy(cluster, verify="hash")
    assert (done.code, done.result["outcome"]) == (0, "copied"), done.output


# --- deletes ----------------------------------------------------------------------------------------------------------


def test_a_delete_gives_the_bytes_back(cluster):
    small_disk(cluster, "spark1", "64m")
    cluster.lab.root("spark1", "python3", "/opt/lab/spark_host.py", "models")
    before = free(cluster, "spark1")
    preview = cluster.run("delete_weights", "--check", repo=REAL)
    assert (preview.result["outcome"], free(cluster, "spark1")) == ("preview", before), preview.output
    done = cluster.run("delete_weights", repo=REAL)
    assert (done.code, done.result["outcome"]) == (0, "deleted"), done.output
    came = free(cluster, "spark1") - before
    assert came >= 12 << 20
    # The folders and links took room too, and are no bytes of the model.
    assert done.result["hosts"][0]["freed"] == came >= done.result["hosts"][0]["bytes"] >= 12 << 20
    assert shell(cluster, "spark1", f"find {CACHE} -name '*org--real*'") == ""
    again = cluster.run("delete_weights", repo=REAL)
    assert (again.code, again.result["outcome"]) == (0, "unchanged"), again.output
    assert sum(row["changed"] for row in again.recap.values()) == 0


# --- the menu, and what it leads to -----------------------------------------------------------------------------------


def test_the_menu_tells_what_is_on_which_spark(cluster):
    shell(cluster, "spark2", f"rm {folder('demo/pair')}/blobs/*")
    menu = cluster.run("menu")
    assert menu.code == 0, menu.output
    cards = {card["name"]: card for card in menu.result["models"]}
    there = {name: {host: row["state"] for host, row in card["hosts"].items()} for name, card in cards.items()}
    assert there["demo/second"] == {"spark1": "complete", "spark2": "complete"}
    assert there["demo/pair"] == {"spark1": "complete", "spark2": "dangling"}
    assert there[REAL] == {"spark1": "complete"}
    status = {name: cards[name]["status"] for name in ("demo/second", "demo/pair", REAL, "demo/only-on-spark1")}
    assert list(status.values()) == ["ready", "missing on some hosts", "needs setup", "no weights"], status
    assert cards[REAL]["hosts"]["spark1"]["frees"] >= 12 << 20
    assert {host: rows[0]["models"] for host, rows in menu.result["folders"].items()} == {"spark1": 8, "spark2": 7}


def test_a_model_is_set_up_from_what_its_files_say_and_served(cluster, recipes):
    suggested = cluster.run("suggest_recipe", model=REAL, recipe_dirs=recipes)
    assert suggested.code == 0, suggested.output
    made = suggested.result["suggestion"]
    saved = cluster.run("save_recipe", model=made["name"], recipe=made["recipe"], recipe_dirs=recipes)
    assert (saved.code, saved.result["changed"]) == (0, True), saved.output
    swapped = cluster.swap(made["name"], recipe_dirs=recipes)
    assert (swapped.code, swapped.result["outcome"]) == (0, "serving"), swapped.output
    assert cluster.chat(made["name"])
    refused = cluster.run("delete_weights", repo=REAL, recipe_dirs=recipes)
    assert (refused.result["outcome"], refused.result["reason"]) == ("refused", "serving"), refused.output
    assert cluster.chat(made["name"])
    assert cluster.run("stop_model").code == 0
    deleted = cluster.run("delete_weights", repo=REAL, recipe_dirs=recipes)
    assert (deleted.result["outcome"], deleted.result["recipe_removed"]) == ("deleted", made["name"]), deleted.output


def test_a_local_model_is_mounted_read_only_served_and_copied(cluster, recipes):
    path = f"{HOME}/models/my-tune"
    shell(cluster, "spark1", f"mkdir -p {HOME}/models && cp -rL {folder(REAL)}/snapshots/* {path}")
    where = {"local_model_dirs": [f"{HOME}/models"], "recipe_dirs": recipes}
    suggested = cluster.run("suggest_recipe", model=path, **where)
    assert suggested.code == 0, suggested.output
    made = suggested.result["suggestion"]
    assert cluster.run("save_recipe", model=made["name"], recipe=made["recipe"], **where).code == 0
    swapped = cluster.swap(made["name"], **where)
    assert (swapped.code, swapped.result["outcome"]) == (0, "serving"), swapped.output
    assert cluster.chat(made["name"])
    looked = json.loads(cluster.host("spark1", "docker", "inspect", "vllm_node").stdout)
    assert f"{path}:{path}:ro" in looked[0]["HostConfig"]["Binds"]
    written = cluster.host("spark1", "docker", "exec", "vllm_node", "touch", f"{path}/x")
    assert "Read-only file system" in written.stderr
    copied = copy(cluster, repo=path, verify="hash", **where)
    assert (copied.code, copied.result["outcome"]) == (0, "copied"), copied.output
    refused = cluster.run("delete_weights", path=path, **where)
    assert refused.result["reason"] == "serving", refused.output


# --- what is wrong with a real Spark's folders and keys ---------------------------------------------------------------


def test_folders_that_a_container_made_as_root_are_told_before_anything_starts(cluster, hub):
    root, mine = folder(REPO), f"{CACHE}/hub"
    cluster.lab.root("spark1", "mkdir", "-p", f"{root}/blobs")
    refused = download(cluster, hub)
    assert (refused.result["outcome"], refused.result["reason"]) == ("refused", "not_writable"), refused.output
    cure = f"sudo chown -R spark {root}"
    assert f"{root} belongs to root, and spark may not write there. Run on that Spark, once: {cure}" in refused.output
    cluster.lab.root("spark2", "chown", "root:", mine)
    closed = copy(cluster)
    assert (closed.result["reason"], closed.result["changed"]) == ("not_writable", False), closed.output
    assert f"{REAL} cannot be put on spark2: {mine} belongs to root" in closed.result["message"]
    cluster.lab.root("spark1", "chown", "-R", "root:", folder(REAL))
    kept = cluster.run("delete_weights", repo=REAL)
    assert (kept.result["outcome"], kept.result["reason"]) == ("refused", "permission"), kept.output
    cluster.lab.root("spark2", "chown", "spark:", mine)
    done = copy(cluster)
    assert (done.code, done.result["outcome"]) == (0, "copied"), "what may be read can be copied"


def test_two_workers_without_a_key_for_each_other_are_led_over_the_head(cluster):
    cluster.lab.use(3)
    shell(cluster, "spark1", f"rm -r {folder(REAL)}")
    model = {"repo": REAL, "bytes": 12 << 20, "shards": 3, "real": True}
    cluster.lab.root("spark2", "python3", "-c", f"{LIB}; spark_host.lay({{'models': [{model}], 'name': ''}})")
    first = copy(cluster)
    assert (first.code != 0, first.result["reason"]) == (True, "no_key"), first.output
    assert "neither spark2 nor spark3 has a key for the other; copy it to spark1 first" in first.result["message"]
    second = copy(cluster)
    assert (second.code, second.result["outcome"], second.result["source"]) == (0, "copied", "spark1"), second.output
    assert [row["message"] for row in second.result["sparks"]] == ["whole already", "copied"]
