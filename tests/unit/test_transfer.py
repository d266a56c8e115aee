"""What downloads and copies share: words, records, processes, the Hub's refusals, plans, and what hostile names do."""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
from email.message import Message
from urllib.error import HTTPError

import pytest
from ansible_collections.spark.control.plugins.action import (
    weights_copy_plan,
    weights_download_outcome,
    weights_download_start,
)
from ansible_collections.spark.control.plugins.module_utils import spark_copy, spark_hub, spark_report, spark_transfer
from ansible_collections.spark.control.plugins.module_utils.spark_transfer import Trouble
from hypothesis import given
from hypothesis import strategies as st

from tests.support import wait_for

GB = 1 << 30


# words


def test_progress_says_how_much_how_fast_and_how_long_yet():
    now = time.time()
    record = {"phase": "downloading", "total": 61 * GB, "started": now - 100, "samples": [[now - 10, 11 * GB]]}
    told = spark_transfer.gauge(record, 12 * GB)
    assert told["message"].startswith("12 of 61 GB, 102 MB/s, about 8 min left")
    assert (told["percent"], told["phase"]) == (19, "downloading")
    assert len(record["samples"]) == 2


def test_progress_without_a_past_or_a_total_says_no_more_than_it_knows():
    record = {"phase": "copying", "total": 0, "started": time.time(), "samples": []}
    assert spark_transfer.gauge(record, 0)["message"] == "0.0 of 0.0 MB"
    record = {"phase": "copying", "total": 10, "started": time.time(), "samples": []}
    assert spark_transfer.gauge(record, 10)["percent"] == 99, "whole is said only once it is verified"
    record = {"phase": "downloading", "total": 4 << 20, "started": 0.0, "samples": [[time.time() - 2, 0]]}
    assert spark_transfer.gauge(record, 88)["message"] == "0.0 of 4.0 MB", "no days left for a first small file"


@given(st.lists(st.tuples(st.integers(0, 10**15), st.integers(0, 10**6)), max_size=20), st.integers(0, 10**15))
def test_progress_never_raises(samples, total):
    record = {"phase": "x", "total": total, "started": 0.0, "samples": [[time.time() - age, n] for n, age in samples]}
    told = spark_transfer.gauge(record, total // 2)
    assert 0 <= told["percent"] <= 99


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "about 1 s left"), (600, "about 10 min left"), (9000, "about 2.5 h")]
)
def test_how_long_yet(seconds, words):
    assert spark_transfer.left(seconds).startswith(words)


# names


@given(st.text(max_size=300))
def test_a_repo_that_is_let_in_is_two_plain_names(text):
    try:
        spark_transfer.check_repo(text)
    except Trouble:
        return
    org, name = text.split("/")
    assert not org.startswith((".", "-"))
    assert not name.startswith((".", "-"))
    assert ".." not in text


@pytest.mark.parametrize("revision", ["../x", "-x", "/x", "a//b", "x y", "a\nb", "", "x" * 300])
def test_a_revision_that_is_none_is_refused(revision):
    with pytest.raises(Trouble):
        spark_transfer.check_repo("org/name", revision)


def test_two_repos_never_share_a_container():
    names = {spark_transfer.transfer_id(*parts) for parts in (("a/b-c",), ("a-b/c",), ("A/b-c",), ("a/b-c", "main"))}
    assert len(names) == 4
    assert all(name.isascii() and "/" not in name for name in names)


# records and processes


def test_a_record_is_its_owners_own_and_a_broken_one_is_none(tmp_path):
    record = {"phase": "x", "total": 1, "started": 1.0, "samples": []}
    spark_transfer.write_record(str(tmp_path), "one", record)
    path = tmp_path / "transfers/one.json"
    assert spark_transfer.read_record(str(tmp_path), "one") == record
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    for text in ("", "[]", "{", '{"phase": 1}', json.dumps(record | {"samples": None})):
        path.write_text(text)
        assert spark_transfer.read_record(str(tmp_path), "one") is None


def test_a_detached_process_leaves_its_exit_code_and_nothing_of_its_job(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARK_CONTROL_JOB", "the-job")
    log, code = tmp_path / "log", tmp_path / "exit"
    process = spark_transfer.start_detached(["sh", "-c", "env; exit 7"], str(log), str(code))
    wait_for(code.exists, what="the exit code")
    assert code.read_text() == "7"
    assert "PATH=" in log.read_text()
    assert "the-job" not in log.read_text()
    assert process["ticks"] is not None
    spark_transfer.start_detached(["/nowhere/at/all"], str(log), str(code))
    wait_for(code.exists, what="the exit code")
    assert code.read_text() == "127"


def test_only_the_very_process_is_ended(tmp_path):
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    told = {"pid": child.pid, "ticks": spark_transfer.ticks(child.pid), "boot": spark_transfer.boot()}
    try:
        for other in (told | {"ticks": 1}, told | {"boot": "another"}, {"pid": child.pid}, {}, None):
            assert not spark_transfer.alive(other)
            assert not spark_transfer.end(other)
        assert child.poll() is None
        assert spark_transfer.end(told)
        assert child.wait(10) < 0
    finally:
        child.kill()


# the Hub


def refusal(status, token=None, code=None, message=""):
    headers = Message()
    for key, value in {"X-Error-Code": code, "X-Error-Message": message}.items():
        if value:
            headers[key] = value
    error = HTTPError("http://hub/x", status, "no", headers, io.BytesIO())
    return spark_hub.Hub("https://hub.example", token)._refusal("org/name", "main", error)


@pytest.mark.parametrize(
    ("status", "token", "code", "message", "told"),
    [
        (401, None, "GatedRepo", "", "no_token"),
        (403, "hf_x", "GatedRepo", "", "gated"),
        (401, "hf_x", None, "Invalid credentials in Authorization header", "token_refused"),
        (401, None, "RepoNotFound", "Repository not found", "not_found"),
        (401, None, None, "Invalid username or password.", "not_found"),
        (404, "hf_x", "RepoNotFound", "", "not_found"),
        (404, None, "RevisionNotFound", "", "no_revision"),
        (429, None, None, "", "hub_busy"),
        (503, None, None, "Down", "hub"),
    ],
)
def test_the_hubs_refusals_are_told_apart(status, token, code, message, told):
    trouble = refusal(status, token, code, message)
    assert trouble.code == told
    assert "hf_x" not in str(trouble)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../b", "", "a//b", ".", None, 7])
def test_a_file_that_leaves_the_folder_is_refused(path):
    with pytest.raises(Trouble):
        spark_hub._file({"type": "file", "path": path, "size": 1, "oid": "0" * 40})


@pytest.mark.parametrize("row", [{"size": -1}, {"size": "1"}, {"oid": "../x"}, {"oid": None}, {"lfs": {"oid": "x"}}])
def test_a_file_that_cannot_be_is_refused(row):
    with pytest.raises(Trouble):
        spark_hub._file({"type": "file", "path": "a", "size": 1, "oid": "0" * 40} | row)


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("hf_abcdefgh\n", 0o640, "others can read it"),
        ("hf_abcdefgh\nsecond\n", 0o600, "does not hold a token"),
        ("", 0o600, "does not hold a token"),
        ("hf_ab cd\r\nX-Header: 1", 0o600, "does not hold a token"),
    ],
)
def test_a_token_file_is_one_line_that_nobody_else_reads(tmp_path, text, mode, words):
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(ValueError, match=words):
        weights_download_start.read_token(str(path))


def test_a_good_token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text("hf_abcdefgh\n")
    path.chmod(0o600)
    assert weights_download_start.read_token(str(path)) == "hf_abcdefgh"


# copies


def test_a_progress_line_of_rsync():
    log = "\n   3   0%    0.00kB/s    0:00:00\r   6291459  49%  400.00MB/s    0:00:00 (xfr#2, to-chk=4/7)\n"
    assert spark_copy.sent(log) == 6291459
    assert spark_copy.sent("nothing") == 0


@pytest.mark.parametrize(
    ("code", "log", "told"),
    [
        (12, 'rsync: write failed on "x": No space left on device (28)', "disk_full"),
        (255, "Host key verification failed.\nrsync: connection unexpectedly closed", "host_key_unknown"),
        (255, "REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.", "host_key_changed"),
        (255, "u@h: Permission denied (publickey,password).", "no_key"),
        (255, "ssh: connect to host 1.2.3.4 port 22: No route to host", "link_down"),
        (30, "rsync error: timeout in data send/receive (code 30)", "link_down"),
        (12, "", "link_down"),
        (127, "", "rsync_missing"),
        (23, 'rsync: link_stat "/x" failed: No such file or directory (2)', "source_vanished"),
        (23, "rsync: mkdir failed: Permission denied (13)", "not_writable"),
        (5, "{near} %s {0}", "rsync"),
    ],
)
def test_rsyncs_failures_are_told_apart(code, log, told):
    found = spark_copy.fault(code, log)
    assert found["code"] == told
    assert "{" not in found["words"].format(near="spark1", far="spark2")


@pytest.mark.parametrize("path", ["../x", "/etc/x", "blobs/../../x", "other/x", "blobs//x", "blobs/x\0", ""])
def test_a_manifest_that_leads_out_of_the_folder_is_refused(path):
    row = {"path": path, "size": 1, "sha256": None, "git": None}
    good = {"kind": "cache", "files": [], "links": [], "refs": {}}
    assert spark_copy.checked(good) == good
    for bad in (
        {"files": [row]},
        {"links": [{"path": path, "to": "blobs/x"}]},
        {"links": [{"path": "snapshots/x/y", "to": path}]},
    ):
        with pytest.raises(Trouble):
            spark_copy.checked(good | bad)
    with pytest.raises(Trouble):
        spark_copy.checked(good | {"refs": {"../x": "0"}})


@pytest.mark.parametrize(
    "peer", [{"address": "-oProxyCommand=x"}, {"address": "a b"}, {"address": "h", "user": "-x y"}]
)
def test_an_address_is_never_an_option(peer):
    with pytest.raises(Trouble):
        spark_copy.destination(peer)


def test_rsync_goes_to_an_ipv6_address_and_uses_a_key_with_a_blank(tmp_path):
    key = tmp_path / "my key"
    key.touch()
    copy = {
        "kind": "cache",
        "direction": "push",
        "peer": {"address": "fd00::2", "user": "spark"},
        "root": "/r",
        "stage": "/s",
    }
    words = spark_copy.rsync_command(copy, str(key), "/l")
    assert words[-2:] == ["/r/", "spark@[fd00::2]:/s/"]
    assert f"'{key}'" in words[words.index("-e") + 1]


def looks(**changes):
    """Two Sparks' looks: spark1 has the model, spark2 nothing."""
    row = {"path": "blobs/a", "size": 100, "sha256": None, "git": None}
    manifest = {"name": "o/n", "kind": "cache", "bytes": 100, "files": [row], "links": [], "refs": {}, "commit": "c"}
    one = {"root": "/1/m", "stage": "/1/s", "complete": True, "reason": "", "manifest": manifest, "rsync": True}
    one |= {"have": {"blobs/a": 100}, "staged": {}, "free": 1000, "reaches": {"spark2": None}}
    two = one | {"root": "/2/m", "stage": "/2/s", "complete": False, "manifest": None, "have": {}}
    two |= {"reaches": {"spark1": {"code": "no_key", "words": "{far} refuses {near}"}}}
    return {
        "spark1": {"looked": one | changes.get("spark1", {})},
        "spark2": {"looked": two | changes.get("spark2", {})},
    }


def plan(answers, **wish):
    peers = {host: {"host": host, "address": host, "user": ""} for host in answers}
    wish = {"name": "o/n", "source": None, "to": [], "verify": "size", **wish}
    return weights_copy_plan.planned(wish, answers, peers)


def test_the_side_with_the_key_runs_rsync():
    (copy,) = plan(looks())["plan"]["copies"]
    assert (copy["runner"], copy["direction"], copy["root"], copy["stage"]) == ("spark1", "push", "/1/m", "/2/s")
    refused = {"code": "no_key", "words": "{far} does not let {near} in"}
    (copy,) = plan(looks(spark1={"reaches": {"spark2": refused}}, spark2={"reaches": {"spark1": None}}))["plan"][
        "copies"
    ]
    assert (copy["runner"], copy["direction"], copy["peer"]["host"]) == ("spark2", "pull", "spark1")
    nobody = plan(looks(spark1={"reaches": {"spark2": refused}}))["plan"]["rows"]["spark2"]["problem"]
    assert nobody["code"] == "no_key"
    assert "neither spark1 nor spark2" in nobody["message"]


def test_two_that_do_not_know_each_other_are_led_over_a_third():
    strange = {"code": "host_key_unknown", "words": "{near} does not know the host key of {far}; run mesh_ssh_keys"}
    answers = looks(spark1={"reaches": {"spark2": strange, "spark3": strange}})
    lone = plan(answers, to=["spark2"])["plan"]["rows"]["spark2"]["problem"]
    assert lone["code"] == "host_key_unknown"
    head = answers["spark2"]["looked"] | {"reaches": {"spark1": None, "spark2": None}}
    told = plan(answers | {"spark3": {"looked": head}}, to=["spark2"])["plan"]["rows"]["spark2"]["problem"]
    assert (told["code"], told["message"].endswith("copy it to spark3 first, then on.")) == ("no_key", True), told


def test_a_closed_folder_is_told_before_anything_is_sent():
    told = plan(looks(spark2={"closed": "/2 belongs to root"}))["plan"]["rows"]["spark2"]["problem"]
    assert told == {"code": "not_writable", "message": "o/n cannot be put on spark2: /2 belongs to root"}


def test_where_one_may_not_write_is_told_with_its_owner_and_the_cure(tmp_path, monkeypatch):
    spark_transfer.must_write(str(tmp_path), str(tmp_path / "not" / "there"))
    monkeypatch.setattr(spark_transfer.os, "access", lambda path, _: path != str(tmp_path / "a b"))
    (tmp_path / "a b").mkdir()
    for uid, words in (
        (tmp_path.stat().st_uid, "may not be written"),
        (54321, "Run on that Spark, once: sudo chown -R"),
    ):
        monkeypatch.setattr(spark_transfer.os, "getuid", lambda uid=uid: uid)
        with pytest.raises(Trouble, match=words) as told:
            spark_transfer.must_write(str(tmp_path), str(tmp_path / "a b" / "blobs"))
        assert told.value.problem()["code"] == "not_writable"
    assert f"54321 '{tmp_path / 'a b'}'" in str(told.value)


def test_a_download_that_was_there_and_was_copied_on_is_told_as_copied():
    for outcome, ok, expected in (
        ("copied", True, "copied"),
        ("unchanged", True, "unchanged"),
        ("failed", False, "failed"),
    ):
        copied = {"ok": ok, "changed": outcome == "copied", "outcome": outcome, "message": "", "reason": None}
        seen = {"started": {"spark1": {"changed": False, "done": True, "message": "there"}}}
        wish = {"repo": "o/n", "revision": "main", "host": "spark1", "operation": "download_weights"}
        wish |= {"copied": copied | {"problems": [], "log_tail": []}}
        told = weights_download_outcome.told(wish, seen | {"watched": {}, "copy_stopped": {}}, preview=False)
        assert (told["outcome"], told["ok"], told["changed"]) == (expected, ok, copied["changed"])


def test_why_a_spark_does_not_answer_is_sshs_words_alone():
    shared = "mux_client_request_session: read: Broken pipe\nssh: No route."
    answer = {"unreachable": True, "msg": f"Task failed: Failed to connect to the host via ssh: {shared}"}
    assert spark_report.fault("spark2", answer) == "spark2 does not answer: ssh: No route"


@pytest.mark.parametrize(
    ("spark2", "code"),
    [({"free": 99}, "disk_full"), ({"rsync": False}, "rsync_missing")],
)
def test_what_is_known_before_is_told_before(spark2, code):
    made = plan(looks(spark2=spark2))["plan"]
    assert made["rows"]["spark2"]["problem"]["code"] == code
    assert made["copies"] == made["targets"] == []


def test_what_came_already_needs_no_room():
    made = plan(looks(spark2={"free": 50, "staged": {"blobs/a": 60}}))["plan"]
    assert made["rows"]["spark2"]["problem"] is None
    made = plan(looks(spark2={"free": 0, "staged": {"blobs/a": 100}}))["plan"]
    assert (made["copies"], made["targets"]) == ([], ["spark2"]), "it only has to be put in place"


def test_a_local_file_that_came_before_it_changed_is_no_part_of_the_copy(tmp_path):
    source, far = tmp_path / "one/mine", tmp_path / "two/mine"
    source.mkdir(parents=True)
    (source / "config.json").write_text("{}")
    waiting = tmp_path / "two/.spark-copy-mine"
    waiting.mkdir(parents=True)
    (waiting / "config.json").write_text("{}")
    (waiting / "renamed-since.json").write_text("{}")
    found = spark_copy.of_local(str(source), str(source))
    assert spark_copy.settle(str(far), found, by_hash=False)
    assert [path.name for path in far.iterdir()] == ["config.json"]
    assert not spark_copy.settle(str(far), found, by_hash=False)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_snapshots_links_may_be_relative_or_absolute(tmp_path, absolute):
    root, commit = tmp_path / "models--o--n", "c" * 40
    (root / "blobs").mkdir(parents=True)
    (root / "snapshots" / commit / "sub").mkdir(parents=True)
    blob = root / "blobs" / ("a" * 64)
    blob.write_bytes(b"x" * 100)
    (root / "snapshots" / commit / "sub/w.bin").symlink_to(blob if absolute else f"../../../blobs/{blob.name}")
    (root / "snapshots" / commit / "plain.json").write_text("{}")
    found = spark_copy.of_cache(str(root), "o/n", commit)
    assert found["links"] == [{"path": f"snapshots/{commit}/sub/w.bin", "to": f"blobs/{blob.name}"}]
    assert {row["path"] for row in found["files"]} == {f"blobs/{blob.name}", f"snapshots/{commit}/plain.json"}
    assert found["bytes"] == 102


def test_a_size_that_is_none_of_the_originals_is_told_and_nothing_is_put_in_place(tmp_path):
    far, waiting = tmp_path / "m", tmp_path / ".spark-copy-m/blobs"
    waiting.mkdir(parents=True)
    (waiting / "a").write_bytes(b"x" * 101)
    row = {"path": "blobs/a", "size": 100, "sha256": None, "git": None}
    found = {"kind": "cache", "files": [row], "links": [], "refs": {"main": "c"}}
    with pytest.raises(Trouble, match="101 bytes after the copy and should have 100 bytes"):
        spark_copy.settle(str(far), found, by_hash=False)
    assert not far.exists()
    assert not (waiting / "a").exists(), "what is too long would never be gone on with"


def test_a_silent_spark_does_not_keep_the_others_from_theirs():
    answers = looks() | {"spark3": {"unreachable": True, "msg": "no route"}}
    made = plan(answers)["plan"]
    assert [copy["to"] for copy in made["copies"]] == ["spark2"]
    assert made["rows"]["spark3"]["problem"]["code"] == "unreachable"


def test_names_in_unicode_and_names_that_are_none(tmp_path):
    (tmp_path / "größe.json").write_text("{}")
    with open(os.path.join(os.fsencode(tmp_path), b"\xff.bin"), "wb"):
        pass
    assert spark_copy.sizes(str(tmp_path)) == {"größe.json": 2}
