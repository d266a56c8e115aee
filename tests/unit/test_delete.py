"""Deleting one model: what goes, what stays, what is refused, and what a cut leaves."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from ansible_collections.spark.control.plugins.module_utils import spark_cache, spark_docker, spark_remove
from ansible_collections.spark.control.plugins.modules import weights_delete
from hypothesis import given
from hypothesis import strategies as st

from tests.caches import WHOLE, as_nobody, let_others_in, listing, model, repo_folder, room, share_blob
from tests.hub import Hub, share


@pytest.fixture(autouse=True)
def _no_containers(monkeypatch):
    monkeypatch.setattr(spark_docker, "docker", lambda *_: subprocess.CompletedProcess((), 0, b"", b""))


def delete(home: Path, repo: str | None = None, check: bool = False, path=None, local=()) -> dict:
    wish = {"repo": repo, "path": path and str(path), "hf_home": str(home), "local_model_dirs": [str(x) for x in local]}
    return weights_delete.delete(wish, check)


def state(home: Path, repo: str) -> str:
    return spark_cache.look(str(home), repo)["state"]


# --- what goes and what stays -----------------------------------------------------------------------------------------


def test_a_downloaded_model_goes_with_its_locks_and_its_shared_payloads(tmp_path):
    files = {"config.json": {}, "model-00001-of-00002.safetensors": 50_000, "model-00002-of-00002.safetensors": 90_000}
    spec = {"org/a": {"files": files}, "org/b": {"files": {"config.json": {}, "model.safetensors": 20_000}}}
    home = tmp_path / "hf"
    with Hub(tmp_path / "served", spec) as hub:
        for repo in spec:
            hub.download(repo, home)
    share(home, *spec)
    before = room(home)
    done = delete(home, "org/a")
    assert (done["changed"], done["problem"], done["kept"]) == (True, None, 0)
    assert before - room(home) == done["bytes"]
    assert state(home, "org/a") == "missing"
    assert state(home, "org/b") == "complete"
    assert not (home / "hub/.locks/models--org--a").exists()
    assert len([path for path in (home / "hub/blobs").glob("??/*") if len(path.name) == 64]) == 1
    from huggingface_hub import scan_cache_dir

    assert {repo.repo_id for repo in scan_cache_dir(home / "hub").repos} == {"org/b"}


def test_a_second_delete_changes_nothing(tmp_path):
    model(tmp_path, "org/a")
    assert delete(tmp_path, "org/a")["changed"]
    there = listing(tmp_path)
    again = delete(tmp_path, "org/a")
    assert (again["changed"], again["problem"], again["bytes"], again["removed"]) == (False, None, 0, [])
    assert listing(tmp_path) == there
    assert not delete(tmp_path / "none", "org/a")["changed"]


def test_check_mode_tells_the_same_and_touches_nothing(tmp_path):
    model(tmp_path, "org/a", shared=True)
    there = listing(tmp_path)
    preview = delete(tmp_path, "org/a", check=True)
    assert listing(tmp_path) == there
    done = delete(tmp_path, "org/a")
    assert [preview[key] for key in ("changed", "bytes", "removed", "diff")] == [
        done[key] for key in ("changed", "bytes", "removed", "diff")
    ]
    assert preview["freed"] == 0


def test_a_payload_that_another_links_to_stays(tmp_path):
    model(tmp_path, "org/a", shared=True)
    other = model(tmp_path, "org/b", shared=True)
    done = delete(tmp_path, "org/a")
    assert (done["kept"], len(done["removed"])) == (2, 1)
    assert {path.name: path.read_bytes() for path in other.iterdir() if path.suffix == ".safetensors"} == {
        name: content for name, content in WHOLE.items() if name.endswith(".safetensors")
    }
    assert delete(tmp_path, "org/b")["kept"] == 0
    assert not [path for path in (tmp_path / "hub/blobs").glob("??/*") if path.suffix != ".lock"]


@pytest.mark.parametrize("where", ["datasets", "snapshot", "local", "foreign"])
def test_any_link_keeps_a_payload(tmp_path, where):
    model(tmp_path, "org/a", shared=True)
    payload = next(path for path in (tmp_path / "hub/blobs").glob("??/*") if not path.suffix)
    link = {
        "datasets": repo_folder(tmp_path, "org/d", "datasets") / "blobs/x",
        "snapshot": repo_folder(tmp_path, "org/s") / "snapshots/abc/model.safetensors",
        "local": tmp_path / "local/tuned/model.safetensors",
        "foreign": tmp_path / "hub/mine/model.safetensors",
    }[where]
    link.parent.mkdir(parents=True)
    link.symlink_to(payload)
    done = delete(tmp_path, "org/a", local=[tmp_path / "local"])
    assert done["kept"] == 1
    assert link.exists()


def test_a_link_made_at_the_last_moment_keeps_the_payload(tmp_path, monkeypatch):
    model(tmp_path, "org/a", shared=True)
    late = repo_folder(tmp_path, "org/late") / "blobs"
    late.mkdir(parents=True)
    count = spark_remove.linked_from

    def then_link(places):
        taken = count(places)
        share_blob(tmp_path, late / "x", WHOLE["model-00001-of-00002.safetensors"])
        return taken

    monkeypatch.setattr(spark_remove, "linked_from", then_link)
    assert delete(tmp_path, "org/a")["kept"] == 1
    assert (late / "x").read_bytes() == WHOLE["model-00001-of-00002.safetensors"]


def test_what_the_file_system_says_came_back(tmp_path):
    root = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    home = Path(tempfile.mkdtemp(dir=root))
    try:
        files = WHOLE | {"model-00001-of-00002.safetensors": os.urandom(32 << 20)}
        model(home, "org/a", files, shared=True)
        before = room(home)
        done = delete(home, "org/a")
        assert done["bytes"] >= 32 << 20
        assert before - room(home) == done["bytes"]
        # Others write to the same file system meanwhile.
        assert abs(done["freed"] - done["bytes"]) < 16 << 20
    finally:
        shutil.rmtree(home)


CONTENTS = [b"a" * 5000, b"b" * 9000, b"c" * 12_345, b"d" * 100, b""]
SHARDS = st.lists(st.sampled_from(CONTENTS), max_size=4)
REPOS = ["org/a", "org/b", "org/a-2", "orga/b", "b/org", "org/a.b"]


@given(
    st.dictionaries(st.sampled_from(REPOS), st.tuples(SHARDS, st.booleans(), st.booleans()), min_size=1),
    st.sampled_from(REPOS),
    st.booleans(),
)
def test_a_delete_frees_what_it_says_and_touches_nobody_else(repos, gone, dataset):
    home = Path(tempfile.mkdtemp())
    try:
        for repo, (shards, shared, tree) in repos.items():
            files = {f"model-{number:05}-of-00009.safetensors": data for number, data in enumerate(shards, 1)}
            model(home, repo, {"config.json": f'{{"_name_or_path": "{repo}"}}'} | files, shared=shared, tree=tree)
        if dataset:
            model(home, "org/a", {"x.safetensors": CONTENTS[0]}, shared=True, kind="datasets")
        seen = {row["name"]: (row["state"], row["bytes"]) for row in spark_cache.scan(str(home))["models"]}
        read = {path: path.read_bytes() for path in (home / "hub").glob("*--*/snapshots/*/*")}
        before = room(home)
        done = delete(home, gone)
        assert done["problem"] is None
        assert done["changed"] == (gone in repos)
        assert before - room(home) == done["bytes"]
        after = {row["name"]: (row["state"], row["bytes"]) for row in spark_cache.scan(str(home))["models"]}
        assert after == {name: row for name, row in seen.items() if name != gone}
        ours = repo_folder(home, gone)
        assert {path: path.read_bytes() for path in read if not path.is_relative_to(ours)} == {
            path: data for path, data in read.items() if not path.is_relative_to(ours)
        }
        assert not ours.exists()
        assert not list((home / "hub").glob(".spark-trash-*"))
        linked = {os.path.realpath(path) for path in (home / "hub").glob("*--*/blobs/*")}
        left = {str(path) for path in (home / "hub/blobs").glob("??/*") if not path.suffix}
        assert left <= linked
    finally:
        shutil.rmtree(home)


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(home: Path, reason: str, outside: Path | None = None, **wish) -> str:
    """Delete, and see that it is refused and that nothing changed; returns the sentence."""
    roots = [root for root in (home, outside) if root]
    there = [listing(root) for root in roots]
    for check in (True, False):
        done = delete(home, check=check, **wish)
        assert (done["changed"], done["reason"]) == (False, reason), done
        assert done["problem"].endswith(".")
        assert [listing(root) for root in roots] == there
    return done["problem"]


@pytest.mark.parametrize(
    "repo",
    [
        "",
        ".",
        "a",
        "a/b/c",
        "../b",
        "a/..",
        "a/b/../c",
        "/etc",
        "/etc/x",
        "-rf/x",
        "a/-x",
        "a//b",
        "a--b/c",
        "a/b\n",
        "a/b\0",
        "datasets--a/b",
        "~/x",
        "a/" + "b" * 200,
        "\uff41/b",
    ],
)
def test_a_repo_that_is_no_repo_name(tmp_path, repo):
    model(tmp_path, "org/a")
    assert "is not a repo name" in refused(tmp_path, "repo", repo=repo)


def test_a_folder_that_is_a_link_to_elsewhere(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    model(elsewhere, "org/a")
    (tmp_path / "hf/hub").mkdir(parents=True)
    repo_folder(tmp_path / "hf", "org/a").symlink_to(repo_folder(elsewhere, "org/a"))
    assert "is a link to another place" in refused(tmp_path / "hf", "link", elsewhere, repo="org/a")


def test_a_cache_that_is_reached_by_a_link_is_a_cache(tmp_path):
    model(tmp_path / "disk", "org/a", shared=True)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/hub").symlink_to(tmp_path / "disk/hub")
    assert delete(tmp_path / "hf", "org/a")["changed"]
    assert not repo_folder(tmp_path / "disk", "org/a").exists()


def test_links_inside_a_model_are_not_followed(tmp_path):
    snapshot = model(tmp_path / "hf", "org/a")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "diary.txt").write_text("dear")
    (snapshot / "folder").symlink_to(mine)
    (snapshot / "file.safetensors").symlink_to(mine / "diary.txt")
    assert delete(tmp_path / "hf", "org/a")["changed"]
    assert (mine / "diary.txt").read_text() == "dear"


def test_a_model_that_is_being_downloaded(tmp_path):
    with Hub(tmp_path / "served", {"org/a": {"files": {"model.safetensors": 400_000}}}, rate=50_000) as hub:
        process = hub.start("org/a", tmp_path / "hf")
        try:
            while state(tmp_path / "hf", "org/a") != "downloading":
                assert process.poll() is None
            done = delete(tmp_path / "hf", "org/a")
            assert (done["changed"], done["reason"]) == (False, "downloading")
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()


def test_a_download_that_keeps_its_lock_is_one_however_slow(tmp_path):
    model(tmp_path, "org/a")
    partial = repo_folder(tmp_path, "org/a") / "blobs/abc.0a1b2c3d.incomplete"
    partial.write_bytes(b"x")
    os.utime(partial, (1, 1))
    lock = tmp_path / "hub/.locks/models--org--a/abc.lock"
    lock.parent.mkdir(parents=True)
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(tmp_path, "downloading", repo="org/a")
    assert delete(tmp_path, "org/a")["changed"]


def test_a_mount_below_the_model(tmp_path, monkeypatch):
    snapshot = model(tmp_path, "org/a")
    kernel = f"36 35 98:0 / {str(snapshot).replace('a', chr(92) + '141')} rw - tmpfs tmpfs rw\n".encode()
    monkeypatch.setattr(spark_remove, "read", lambda *_, **__: kernel)
    assert "a mount of another disk" in refused(tmp_path, "mount", repo="org/a")


def test_files_of_another_user(tmp_path):
    if os.getuid():
        pytest.skip("only root can make files that are another's")
    model(tmp_path, "org/a")
    let_others_in(tmp_path)
    there = listing(tmp_path)
    done = as_nobody(lambda: delete(tmp_path, "org/a"))
    assert (done["changed"], done["reason"]) == (False, "permission")
    assert "may not delete org/a" in done["problem"]
    assert listing(tmp_path) == there


def test_a_link_put_in_the_models_place_meanwhile(tmp_path, monkeypatch):
    folder = repo_folder(tmp_path / "hf", "org/a")
    model(tmp_path / "hf", "org/a")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "diary.txt").write_text("dear")

    def swap(_size):
        folder.rename(tmp_path / "aside")
        folder.symlink_to(mine)
        return "0" * 8

    monkeypatch.setattr(spark_remove.secrets, "token_hex", swap)
    done = delete(tmp_path / "hf", "org/a")
    assert "nothing was deleted" in done["problem"]
    assert (mine / "diary.txt").read_text() == "dear"
    assert folder.is_symlink()


def test_one_delete_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(spark_remove, "PATIENCE", 0)
    model(tmp_path, "org/a")
    with held(tmp_path / "hub"):
        assert delete(tmp_path, "org/a")["reason"] == "busy"
    assert delete(tmp_path, "org/a")["changed"]


@contextlib.contextmanager
def held(folder: Path):
    """A folder's lock, held by somebody else."""
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield
    os.close(handle)


# --- local models -----------------------------------------------------------------------------------------------------


def lay(folder: Path, files: dict = WHOLE) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_a_local_model_goes_and_its_neighbour_stays(tmp_path):
    tuned, other = lay(tmp_path / "models/tuned"), lay(tmp_path / "models/other")
    before = room(tmp_path)
    done = delete(tmp_path / "hf", path=tuned, local=[tmp_path / "models"])
    assert (done["changed"], done["problem"], done["removed"]) == (True, None, [str(tuned)])
    assert before - room(tmp_path) == done["bytes"]
    assert os.listdir(tmp_path / "models") == ["other"]
    assert other.is_dir()
    assert not delete(tmp_path / "hf", path=tuned, local=[tmp_path / "models"])["changed"]


def test_a_local_folder_that_is_itself_a_model(tmp_path):
    tuned = lay(tmp_path / "tuned")
    assert delete(tmp_path / "hf", path=tuned, local=[tuned])["changed"]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "path",
    [
        "/etc",
        "/",
        "",
        "models/tuned",
        "{}/models/../secret",
        "{}/secret",
        "{}/models",
        "{}/models/tuned/..",
        "-rf",
        "{}/models/tuned/model-00001-of-00002.safetensors",
        "{}/models/link/secret",
        "{}/hf/hub/models--org--a",
        "{}/hf/hub",
        "{}/models/tuned\0",
        "{}/models/.hidden",
        "//etc",
        "{}",
    ],
)
def test_a_path_outside_the_local_folders(tmp_path, path):
    lay(tmp_path / "models/tuned")
    lay(tmp_path / "models/.hidden")
    lay(tmp_path / "secret")
    model(tmp_path / "hf", "org/a")
    (tmp_path / "models/link").symlink_to(tmp_path)
    refused(tmp_path, "path", path=path.replace("{}", str(tmp_path)), local=[tmp_path / "models"])


def test_a_local_link_a_folder_without_a_model_and_one_with_others_in_it(tmp_path):
    lay(tmp_path / "secret")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/link").symlink_to(tmp_path / "secret")
    (tmp_path / "models/notes").mkdir()
    (tmp_path / "models/notes/diary.txt").write_text("dear")
    lay(tmp_path / "models/outer")
    lay(tmp_path / "models/outer/inner")
    local = [tmp_path / "models", tmp_path / "models/outer/inner"]
    refused(tmp_path, "link", path=tmp_path / "models/link", local=local)
    assert "neither a configuration nor weights" in refused(
        tmp_path, "path", path=tmp_path / "models/notes", local=local
    )
    assert "other models in it" in refused(tmp_path, "path", path=tmp_path / "models/outer", local=local)


def test_a_cache_inside_a_local_folder_is_not_deleted_as_one(tmp_path):
    lay(tmp_path / "models/hf", {"config.json": "{}"})
    model(tmp_path / "models/hf", "org/a")
    local = [tmp_path / "models"]
    done = delete(tmp_path / "models/hf", path=tmp_path / "models/hf", local=local)
    assert (done["changed"], done["reason"]) == (False, "path")


def test_a_local_model_that_a_container_uses(tmp_path, monkeypatch):
    tuned = lay(tmp_path / "models/tuned")

    def docker(*words):
        told = f'[{{"Name": "/vllm_node", "Mounts": [{{"Source": "{tuned}"}}]}}]'
        return subprocess.CompletedProcess(words, 0, b"abc\n" if words[0] == "ps" else told.encode(), b"")

    monkeypatch.setattr(spark_docker, "docker", docker)
    said = refused(tmp_path, "serving", path=tuned, local=[tmp_path / "models"])
    assert "in use by the container vllm_node" in said

    def down(*_):
        raise spark_docker.DockerError("Cannot connect to the Docker daemon")

    monkeypatch.setattr(spark_docker, "docker", down)
    monkeypatch.setattr(spark_remove.shutil, "which", lambda _: "/usr/bin/docker")
    assert "does not say" in refused(tmp_path, "docker", path=tuned, local=[tmp_path / "models"])


# --- a cut ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [*range(1, 14), 20])
def test_a_delete_that_is_killed_leaves_nothing_whole_and_the_next_finishes(tmp_path, step):
    model(tmp_path, "org/a", shared=True)
    neighbour = model(tmp_path, "org/b", {"config.json": "{}", "model.safetensors": b"9" * 4000}, shared=True)
    child = os.fork()
    if not child:
        left = [step]

        def dying(name):
            real = getattr(os, name)

            def call(*words, **more):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*words, **more)

            return call

        for name in ("rename", "unlink", "rmdir"):
            setattr(os, name, dying(name))
        delete(tmp_path, "org/a")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    rows = {row["name"]: row for row in spark_cache.scan(str(tmp_path))["models"]}
    assert rows["org/b"]["state"] == "complete"
    if step > 1 and os.WIFSIGNALED(status):
        assert state(tmp_path, "org/a") == "missing"
        assert "org/a" not in rows or "its delete was cut short" in rows["org/a"]["reason"]
    assert delete(tmp_path, "org/a")["problem"] is None
    assert not list((tmp_path / "hub").glob("*org--a*"))
    payloads = [path for path in (tmp_path / "hub/blobs").glob("??/*") if not path.suffix]
    assert [str(path) for path in payloads] == [os.path.realpath(neighbour / "model.safetensors")]


def test_a_new_download_beside_what_a_cut_left(tmp_path):
    model(tmp_path, "org/a", shared=True)
    hub = tmp_path / "hub"
    (hub / "models--org--a").rename(hub / f"{spark_cache.TRASH}models--org--a.0123abcd")
    assert [row["name"] for row in spark_cache.scan(str(tmp_path))["models"]] == ["org/a"]
    model(tmp_path, "org/a", shared=True)
    (entry,) = spark_cache.scan(str(tmp_path))["models"]
    assert entry["state"] == "complete"
    done = delete(tmp_path, "org/a")
    assert len(done["removed"]) == 4
    assert not list(hub.glob("*org--a*"))


def test_half_a_copy_goes_too_once_it_is_left(tmp_path):
    waiting = lay(tmp_path / "hub/.spark-copy-models--org--a", {"abc": b"x" * 5000})
    refused(tmp_path, "downloading", repo="org/a")
    os.utime(waiting / "abc", (1, 1))
    before = room(tmp_path)
    done = delete(tmp_path, "org/a")
    assert (done["changed"], done["bytes"]) == (True, before - room(tmp_path))
    assert os.listdir(tmp_path / "hub") == []
