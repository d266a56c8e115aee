"""What a scan says of caches that the real huggingface_hub made, and of broken ones."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from ansible_collections.spark.control.plugins.module_utils import spark_cache, spark_disk, spark_local

from tests.caches import WHOLE, as_nobody, let_others_in, listing, model, repo_folder, share_blob
from tests.hub import Hub, share
from tests.support import wait_for

SPEC = {
    "org/small": {
        "files": {
            "config.json": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
            "README.md": "Hello",
            "sub/more.json": {},
            "model-00001-of-00002.safetensors": 50_000,
            "model-00002-of-00002.safetensors": 300_000,
        }
    },
    "org/twin": {"files": {"config.json": {}, "model.safetensors": 40_000}},
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with Hub(tmp_path_factory.mktemp("hub"), SPEC) as running:
        yield running


@pytest.fixture(scope="module")
def downloaded(hub, tmp_path_factory):
    """A cache that `hf download` made. Not to be changed."""
    home = tmp_path_factory.mktemp("hf")
    for repo in SPEC:
        hub.download(repo, home)
    return home


def look(home: Path, repo: str, **more) -> dict:
    return spark_cache.look(str(home), repo, **more)


# --- caches made by huggingface_hub -----------------------------------------------------------------------------------


def test_a_download_is_complete(downloaded):
    entry = look(downloaded, "org/small")
    assert (entry["state"], entry["reason"], entry["missing"], entry["progress"]) == ("complete", "", [], None)
    assert (entry["weights_bytes"], entry["files"], entry["revisions"]) == (350_000, 5, 1)
    assert entry["bytes"] > 350_000
    assert entry["frees"] >= 350_000
    assert entry["snapshot"].endswith(entry["revision"])
    assert entry["last_used"] is not None


def agree(home: Path) -> None:
    """Every model as scan_cache_dir sees it."""
    from huggingface_hub import scan_cache_dir

    theirs = {repo.repo_id: repo for repo in scan_cache_dir(home / "hub").repos}
    ours = {entry["name"]: entry for entry in spark_cache.scan(str(home))["models"]}
    assert ours.keys() == theirs.keys()
    for name, repo in theirs.items():
        assert ours[name]["bytes"] == repo.size_on_disk
        assert ours[name]["revisions"] == len(repo.revisions)
        served = next(row for row in repo.revisions if row.commit_hash == ours[name]["revision"])
        assert ours[name]["files"] == len(served.files)


def test_it_agrees_with_huggingface_hub_in_both_layouts(hub, tmp_path):
    for repo in SPEC:
        hub.download(repo, tmp_path)
    agree(tmp_path)
    share(tmp_path, "org/small")
    assert (tmp_path / "hub/blobs").is_dir()
    agree(tmp_path)
    entry = look(tmp_path, "org/small")
    assert (entry["state"], entry["weights_bytes"]) == ("complete", 350_000)
    assert entry["frees"] >= 350_000


def test_a_second_revision_counts_what_is_new(tmp_path):
    with Hub(tmp_path / "served", {"org/two": SPEC["org/twin"]}) as hub:
        hub.download("org/two", tmp_path / "hf")
        first = look(tmp_path / "hf", "org/two")
        (tmp_path / "served/org/two/config.json").write_text('{"model_type": "newer"}')
        hub.download("org/two", tmp_path / "hf")
    second = look(tmp_path / "hf", "org/two")
    assert (first["revisions"], second["revisions"]) == (1, 2)
    assert second["revision"] != first["revision"]
    assert first["bytes"] < second["bytes"] < first["bytes"] + 1000
    older = look(tmp_path / "hf", "org/two", revision=first["revision"])
    assert (older["revision"], older["facts"]) == (first["revision"], {})
    agree(tmp_path / "hf")


def test_a_download_in_progress_and_one_that_was_killed(tmp_path):
    with Hub(tmp_path / "served", SPEC, rate=20_000) as hub:
        process = hub.start("org/small", tmp_path / "hf")
        try:
            # The small files are there a moment before the first shard's partial file is.
            loading = wait_for(
                lambda: (found := look(tmp_path / "hf", "org/small"))["state"] == "downloading" and found,
                what="a scan that says it is being downloaded",
            )
            assert loading["reason"] == "it is still being downloaded"
            assert loading["progress"]
            assert loading["snapshot"]
        finally:
            process.kill()
            process.communicate()
    for left in (tmp_path / "hf/hub").rglob("*.incomplete"):
        os.utime(left, (time.time() - 60,) * 2)
    cut = look(tmp_path / "hf", "org/small")
    assert cut["state"] in ("partial", "metadata only")
    assert "model-00002-of-00002.safetensors" in cut["missing"]
    assert cut["progress"]["percent"] < 100
    assert cut["progress"]["total"] >= 350_000
    assert cut["missing_count"] == len(cut["missing"])


# --- completeness -----------------------------------------------------------------------------------------------------


def test_numbers_with_a_gap_are_missing_shards(tmp_path):
    files = {name: content for name, content in WHOLE.items() if "00001" not in name}
    model(tmp_path, "org/gap", files)
    entry = look(tmp_path, "org/gap")
    assert (entry["state"], entry["missing"]) == ("partial", ["model-00001-of-00002.safetensors"])
    assert entry["reason"] == "1 of its files is missing, the first is model-00001-of-00002.safetensors"


def test_an_index_names_what_numbers_do_not(tmp_path):
    index = {"metadata": {"total_size": 12_000}, "weight_map": {"a": "model.safetensors", "b": "mtp.safetensors"}}
    files = {"config.json": "{}", "model.safetensors": b"1" * 100, "model.safetensors.index.json": json.dumps(index)}
    model(tmp_path, "org/index", files)
    entry = look(tmp_path, "org/index")
    assert (entry["state"], entry["missing"]) == ("partial", ["mtp.safetensors"])
    assert entry["progress"] == {"done": 100, "total": 12_000, "percent": 0.8}


def test_a_tree_tells_lengths_too(tmp_path):
    model(tmp_path, "org/short", WHOLE, tree=True, tree_files={"model-00002-of-00002.safetensors": 7001})
    entry = look(tmp_path, "org/short")
    assert (entry["state"], entry["missing"]) == ("partial", ["model-00002-of-00002.safetensors"])
    assert entry["reason"].startswith("1 of its files is not as long as it should be")


def test_formats_that_were_left_out_on_purpose_are_not_missing(tmp_path):
    more = {"original/consolidated.00.pth": 99, "pytorch_model.bin": 77, "README.md": 5, "other-Q4_K_M.gguf": 55}
    model(tmp_path, "org/chosen", WHOLE, tree=True, tree_files=more)
    assert look(tmp_path, "org/chosen")["state"] == "complete"


def test_a_repo_without_weights_says_which_it_lacks(tmp_path):
    model(tmp_path, "org/meta", {"config.json": "{}"}, tree=True, tree_files={"model.safetensors": 9000})
    entry = look(tmp_path, "org/meta")
    assert (entry["state"], entry["missing"]) == ("metadata only", ["model.safetensors"])
    assert entry["progress"]["total"] == 9002


def test_a_shard_of_no_bytes_is_missing(tmp_path):
    model(tmp_path, "org/empty", WHOLE | {"model-00002-of-00002.safetensors": b""})
    entry = look(tmp_path, "org/empty")
    assert (entry["state"], entry["missing"]) == ("partial", ["model-00002-of-00002.safetensors"])


def test_links_that_lead_nowhere_are_dangling(tmp_path):
    snapshot = model(tmp_path, "org/torn", WHOLE)
    (snapshot / "model-00002-of-00002.safetensors").resolve().unlink()
    entry = look(tmp_path, "org/torn")
    assert entry["state"] == "dangling"
    assert "model-00002-of-00002.safetensors" in entry["reason"]


def test_without_refs_the_youngest_snapshot_counts(tmp_path):
    old = model(tmp_path, "org/norefs", WHOLE, ref=None, revision="a" * 40)
    new = model(tmp_path, "org/norefs", WHOLE | {"x.txt": "x"}, ref=None, revision="b" * 40)
    os.utime(old, (1, 1))
    entry = look(tmp_path, "org/norefs")
    assert (entry["state"], entry["revision"], entry["snapshot"]) == ("complete", "b" * 40, str(new))


def test_a_ref_to_a_snapshot_that_is_not_there(tmp_path):
    model(tmp_path, "org/ref", WHOLE)
    (repo_folder(tmp_path, "org/ref") / "refs/main").write_text("c" * 40)
    entry = look(tmp_path, "org/ref")
    assert (entry["state"], entry["snapshot"], entry["reason"]) == ("partial", None, "it has no snapshot of main")
    assert entry["bytes"] > 12_000


@pytest.mark.parametrize("revision", ["../../x", "/etc/passwd", "-x", ".", "no\0de"])
def test_a_hostile_revision_is_no_revision(tmp_path, revision):
    model(tmp_path, "org/a", WHOLE)
    assert look(tmp_path, "org/a", revision=revision)["snapshot"] is None


# --- what deleting frees ----------------------------------------------------------------------------------------------


def test_a_payload_that_two_link_to_frees_nothing_until_the_last(tmp_path):
    model(tmp_path, "org/a", WHOLE, shared=True)
    alone = look(tmp_path, "org/a")["frees"]
    model(tmp_path, "org/b", WHOLE, shared=True)
    both = {entry["name"]: entry for entry in spark_cache.scan(str(tmp_path))["models"]}
    assert both["org/a"]["bytes"] == both["org/b"]["bytes"] == sum(map(len, WHOLE.values()))
    assert both["org/a"]["frees"] == both["org/b"]["frees"] == look(tmp_path, "org/a")["frees"] < alone


def test_a_dataset_is_no_model_and_its_links_count(tmp_path):
    model(tmp_path, "org/a", WHOLE, shared=True)
    alone = look(tmp_path, "org/a")["frees"]
    data = repo_folder(tmp_path, "org/data", "datasets") / "blobs"
    data.mkdir(parents=True)
    share_blob(tmp_path, data / "same", WHOLE["model-00001-of-00002.safetensors"])
    scan = spark_cache.scan(str(tmp_path))
    assert [entry["name"] for entry in scan["models"]] == ["org/a"]
    assert scan["models"][0]["frees"] < alone


def test_a_hard_link_elsewhere_keeps_its_bytes(tmp_path):
    snapshot = model(tmp_path, "org/a", WHOLE)
    alone = look(tmp_path, "org/a")["frees"]
    os.link((snapshot / "model-00001-of-00002.safetensors").resolve(), tmp_path / "elsewhere")
    entry = look(tmp_path, "org/a")
    assert entry["frees"] < alone
    assert entry["bytes"] == sum(map(len, WHOLE.values()))


# --- local models and folders -----------------------------------------------------------------------------------------


def lay(folder: Path, files: dict) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_a_local_folder_is_a_model_or_has_models(tmp_path):
    one = lay(tmp_path / "one", WHOLE)
    lay(tmp_path / "many/tuned", WHOLE)
    lay(tmp_path / "many/notes", {"diary.txt": "no model"})
    scan = spark_cache.scan(str(tmp_path / "hf"), [str(one), str(tmp_path / "many"), str(tmp_path / "none")])
    assert [entry["name"] for entry in scan["models"]] == [str(tmp_path / "many/tuned"), str(one)]
    assert {entry["kind"] for entry in scan["models"]} == {"local"}
    assert all(entry["state"] == "complete" and entry["repo"] is None for entry in scan["models"])
    assert [(row["models"], row["reason"]) for row in scan["folders"]] == [
        (0, "it is not there"),
        (1, ""),
        (1, ""),
        (0, "it is not there"),
    ]
    found = spark_cache.look(str(tmp_path / "hf"), str(one), local=[str(one)])
    assert (found["state"], found["weights_bytes"]) == ("complete", 12_000)
    assert spark_cache.look(str(tmp_path / "hf"), str(one), local=[])["state"] == "missing"


def test_a_local_model_names_its_repo_only_if_it_is_called_alike(tmp_path):
    config = json.dumps({"_name_or_path": "Qwen/Base"})
    lay(tmp_path / "m/base", WHOLE | {"config.json": config})
    lay(tmp_path / "m/mine", WHOLE | {"config.json": config})
    repos = {Path(entry["name"]).name: entry["repo"] for entry in spark_local.local_models(str(tmp_path / "m"), 0)[0]}
    assert repos == {"base": "Qwen/Base", "mine": None}


def test_a_loop_of_links_ends(tmp_path):
    folder = lay(tmp_path / "m/loop", WHOLE)
    (folder / "again").symlink_to(folder)
    (folder / "self").symlink_to("self")
    (tmp_path / "m/up").symlink_to(tmp_path / "m")
    (found,) = spark_local.local_models(str(tmp_path / "m"), 0)[0]
    assert found["name"] == str(folder)
    assert found["state"] == "dangling"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda hub: None, "it is not there"),
        (lambda hub: hub.write_text("x"), "it is not a folder"),
        (lambda hub: hub.mkdir(), "there is no model in it"),
    ],
)
def test_an_empty_folder_says_why(tmp_path, make, why):
    make(tmp_path / "hub")
    assert spark_cache.scan(str(tmp_path))["folders"][0]["reason"] == why


def test_folders_that_may_not_be_read(tmp_path):
    snapshot = model(tmp_path, "org/closed", WHOLE)
    model(tmp_path, "org/open", WHOLE)
    let_others_in(tmp_path)
    snapshot.chmod(0)
    (repo_folder(tmp_path, "org/closed") / "refs").chmod(0)
    try:
        states = as_nobody(lambda: {row["name"]: row["state"] for row in spark_cache.scan(str(tmp_path))["models"]})
        (tmp_path / "hub").chmod(0)
        told = as_nobody(lambda: spark_cache.scan(str(tmp_path))["folders"][0]["reason"])
    finally:
        for folder in (tmp_path / "hub", snapshot, repo_folder(tmp_path, "org/closed") / "refs"):
            folder.chmod(0o755)
    assert states == {"org/closed": "metadata only", "org/open": "complete"}
    assert told == "it may not be read"


# --- hostile things ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repo", ["bad", "a/b/c", "../x", "org/..", "-o/x", "org/a--b", "org/a\n", "org/" + "x" * 200])
def test_what_is_no_repo_name_is_said_to_be_none(tmp_path, repo):
    entry = look(tmp_path, repo)
    assert entry["state"] == "missing"
    assert "is not a repo name" in entry["reason"]
    assert spark_cache.look(str(tmp_path), "/no/such")["state"] == "missing"


def test_names_in_unicode_and_in_no_encoding_at_all(tmp_path):
    snapshot = model(tmp_path, "org/a", WHOLE | {"größe-模型.txt": "x"})
    os.symlink(b"nowhere\xff", os.fsencode(snapshot) + b"/\xff\xfe.safetensors")
    os.mkdir(os.fsencode(tmp_path) + b"/hub/models--org--\xff\n\x1b")
    os.mkdir(tmp_path / "hub/models--org--模型")
    scan = spark_cache.scan(str(tmp_path))
    assert "org/模型" in {entry["name"] for entry in scan["models"]}
    assert json.dumps(scan, ensure_ascii=False).encode("utf-8").decode().isprintable()


def test_a_fifo_and_a_device_are_never_opened(tmp_path):
    snapshot = model(tmp_path, "org/a", {name: WHOLE[name] for name in WHOLE if name != "config.json"})
    os.mkfifo(snapshot / "config.json")
    os.mkfifo(repo_folder(tmp_path, "org/a") / "blobs/fifo")
    (snapshot / "tokenizer_config.json").symlink_to("/dev/zero")
    os.mkdir(repo_folder(tmp_path, "org/a") / "trees")
    os.mkfifo(repo_folder(tmp_path, "org/a") / f"trees/{snapshot.name}.json")
    assert look(tmp_path, "org/a")["state"] == "complete"


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"a":' * 100_000, "9" * 100_000, "null", "[]", '{"architectures": 5}']
)
def test_json_of_any_shape_is_taken_or_left(tmp_path, text):
    files = dict.fromkeys(("config.json", "tokenizer_config.json", "hf_quant_config.json"), text)
    snapshot = model(tmp_path, "org/a", WHOLE | files | {"model.safetensors.index.json": text})
    (repo_folder(tmp_path, "org/a") / "trees").mkdir()
    (repo_folder(tmp_path, "org/a") / f"trees/{snapshot.name}.json").write_text(text)
    assert look(tmp_path, "org/a")["state"] == "complete"


def test_a_huge_file_is_not_read(tmp_path):
    snapshot = model(tmp_path, "org/a", WHOLE)
    config = (snapshot / "config.json").resolve()
    with open(config, "r+b") as file:
        file.truncate(1 << 34)
    entry = look(tmp_path, "org/a")
    assert (entry["state"], entry["facts"]) == ("complete", {})
    assert entry["bytes"] > 1 << 34
    assert entry["frees"] < 1 << 20


def test_foreign_files_everywhere_change_nothing(tmp_path):
    snapshot = model(tmp_path, "org/a", WHOLE)
    before = look(tmp_path, "org/a")["state"]
    for folder in (tmp_path / "hub", snapshot.parent, snapshot.parents[1], snapshot.parents[1] / "refs"):
        (folder / ".DS_Store").write_bytes(b"\0")
        (folder / "thumbs.db").write_bytes(b"\0")
    (tmp_path / "hub/blobs").write_text("no folder")
    (tmp_path / "hub/models--file--file").write_text("no folder")
    (tmp_path / "hub/version.txt").write_text("1")
    scan = spark_cache.scan(str(tmp_path))
    assert [(entry["name"], entry["state"]) for entry in scan["models"]] == [("org/a", before)]


def test_files_that_vanish_meanwhile(tmp_path, monkeypatch):
    snapshot = model(tmp_path, "org/a", WHOLE, tree=True)
    real = spark_cache.rows

    def vanishing(folder):
        found = real(folder)
        for row in found:
            if row.name.endswith(".safetensors"):
                os.unlink(row.path)
        return found

    monkeypatch.setattr(spark_cache, "rows", vanishing)
    assert look(tmp_path, "org/a")["state"] in ("dangling", "partial", "metadata only")
    assert snapshot.is_dir()


def test_a_look_changes_nothing(downloaded):
    before = listing(downloaded)
    spark_cache.scan(str(downloaded), [str(downloaded)])
    assert listing(downloaded) == before


def test_a_cache_on_another_file_system(tmp_path):
    shm = Path("/dev/shm")
    if not shm.is_dir() or os.stat(shm).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("/dev/shm is no file system of its own here")
    home = shm / f"spark-scan-{os.getpid()}"
    try:
        model(home, "org/a", WHOLE, shared=True)
        (tmp_path / "hf").symlink_to(home)
        entry = look(tmp_path / "hf", "org/a")
        assert (entry["state"], entry["weights_bytes"]) == ("complete", 12_000)
        assert entry["frees"] >= 12_000
    finally:
        shutil.rmtree(home)


def test_plain_makes_anything_printable():
    for text in ("a\x1b[2Jb", "\udcff", "\ud800", "x\u202ey", "é"):
        shown = spark_disk.plain(text)
        assert shown.isprintable()
        shown.encode("utf-8")
