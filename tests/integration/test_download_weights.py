"""The real `hf download` from a local hub into a simulated Spark, cut, cancelled, refused and gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.hub import DENIED, Hub
from tests.support import wait_for
from webui.jobs import JobStore

TOKEN = "hf_theOneThatIsRight1234567890"
WRONG = "hf_theOneThatIsWrong1234567890"
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
SHARDS = {f"model-{number:05}-of-00008.safetensors": 1 << 20 for number in range(1, 9)}
REPO = "org/name"


@pytest.fixture
def hub(tmp_path):
    """A hub with one open repo and a gated one, as fast as it goes."""
    with serve(tmp_path) as made:
        yield made


@pytest.fixture
def slow_hub(tmp_path):
    """The same at 1 MB/s: the open repo takes eight seconds."""
    with serve(tmp_path, rate=1 << 20) as made:
        yield made


def serve(tmp_path, rate=None) -> Hub:
    gated = {"files": {"config.json": CONFIG, "model.safetensors": 1 << 20}, "gated": True}
    spec = {REPO: {"files": {"config.json": CONFIG, **SHARDS}}, "org/gated": gated}
    return Hub(tmp_path / "hub", spec, rate=rate, token=TOKEN)


@pytest.fixture
def store(cluster, project, monkeypatch) -> JobStore:
    """The jobs of that cluster's controller."""
    for key, value in cluster.environment.items():
        monkeypatch.setenv(key, value)
    return JobStore(Path(cluster.environment["SPARK_CONTROL_STATE"]), project)


def download(cluster, hub, *arguments, repo=REPO, **variables):
    """playbooks/download_weights.yml from that hub, with looks that suit a simulation."""
    url = hub if isinstance(hub, str) else hub.url
    return cluster.run(
        "download_weights", *arguments, repo=repo, hf_endpoint=url, **{"weights_hold_seconds": 0.5, **variables}
    )


def cache(cluster, repo=REPO, host="spark1") -> Path:
    return cluster.root / host / "home/.cache/huggingface/hub" / f"models--{repo.replace('/', '--')}"


def whole(cluster) -> dict[str, tuple]:
    """The blobs that came whole, each with what tells whether it was written again."""
    blobs = [path for path in (cache(cluster) / "blobs").glob("*") if path.suffix != ".incomplete"]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in blobs}


def downloaders(cluster) -> list[str]:
    return [name for name in cluster.containers("spark1") if name.startswith("spark-control-download-")]


def token_file(tmp_path, token, mode=0o600) -> str:
    path = tmp_path / "token"
    path.write_text(token + "\n")
    path.chmod(mode)
    return str(path)


def test_a_preview_then_a_download_with_progress_then_no_change(cluster, slow_hub):
    preview = download(cluster, slow_hub, "--check", "--diff")
    assert preview.result["outcome"] == "preview"
    assert "8.0 MB in 9 files would be downloaded" in preview.result["message"]
    assert "+model-00008-of-00008.safetensors (1.0 MB)" in preview.output
    assert not cache(cluster).exists()

    done = download(cluster, slow_hub)
    assert (done.code, done.result["outcome"]) == (0, "downloaded"), done.output
    looks = re.findall(r"spark1: (\d\.\d) of 8\.0 MB", done.output)
    assert len(set(looks)) >= 4
    assert re.search(r"of 8\.0 MB, [\d.]+ [kM]B/s, about \d+ s left", done.output)
    snapshot = Path(done.result["weights"]["path"])
    assert {path.name for path in snapshot.iterdir()} == {"config.json", *SHARDS}
    assert done.result["weights"]["state"] == "complete"
    assert downloaders(cluster) == []
    assert list((cluster.root / "spark1/home/.spark-control/transfers").iterdir()) == []

    again = download(cluster, slow_hub)
    assert (again.result["outcome"], again.result["changed"]) == ("unchanged", False)
    assert again.recap["spark1"]["changed"] == 0
    offline = download(cluster, "http://127.0.0.1:9")
    assert (offline.code, offline.result["outcome"]) == (0, "unchanged")
    assert "could not be asked" in offline.result["message"]


def test_killed_half_way_it_says_so_and_the_next_run_takes_it_up(cluster, slow_hub):
    run = cluster.start("download_weights", repo=REPO, hf_endpoint=slow_hub.url, weights_hold_seconds=0.5)
    wait_for(lambda: len(whole(cluster)) >= 4, what="some whole files")
    top = (downloaders(cluster)[0], "-eo", "pid,args")
    for pid in re.findall(r"^(\d+)", cluster.host("spark1", "docker", "top", *top).stdout, re.M):
        os.kill(int(pid), signal.SIGKILL)
    cut = cluster.finish(run)
    assert cut.code != 0
    assert re.search(r"stopped: hf failed .*; \d\.\d MB of 8\.0 MB are there and stay", cut.result["message"])
    kept = whole(cluster)
    assert len(kept) >= 4
    assert list((cache(cluster) / "blobs").glob("*.incomplete")) == [], "nothing would ever take these up"

    preview = download(cluster, slow_hub, "--check")
    assert f"in {9 - len(kept)} files" in preview.result["message"]
    done = download(cluster, slow_hub)
    assert done.result["outcome"] == "downloaded"
    assert {name: stamp for name, stamp in whole(cluster).items() if name in kept} == kept, "not downloaded twice"


def test_it_outlives_the_playbook_and_a_second_run_attaches(cluster, slow_hub):
    first = cluster.start("download_weights", repo=REPO, hf_endpoint=slow_hub.url)
    wait_for(lambda: whole(cluster), what="a whole file")
    first.kill()
    first.wait()
    there = cluster.host("spark1", "docker", "inspect", "--format", "{{.Id}}", downloaders(cluster)[0]).stdout
    second = cluster.start("download_weights", repo=REPO, hf_endpoint=slow_hub.url)
    wait_for(lambda: len(whole(cluster)) >= 3, what="more files")
    assert cluster.host("spark1", "docker", "inspect", "--format", "{{.Id}}", downloaders(cluster)[0]).stdout == there
    done = cluster.finish(second)
    assert (done.code, done.result["outcome"]) == (0, "downloaded")


def test_two_runs_at_once_share_one_download(cluster, slow_hub):
    runs = [cluster.start("download_weights", repo=REPO, hf_endpoint=slow_hub.url) for _ in range(2)]
    ended = [cluster.finish(run) for run in runs]
    assert [run.code for run in ended] == [0, 0], ended
    assert {run.result["outcome"] for run in ended} == {"downloaded"}


def test_a_cancel_stops_the_far_side_and_keeps_what_is_whole(cluster, slow_hub, store, monkeypatch):
    monkeypatch.setenv("SPARK_DEMO_HUB", slow_hub.url)
    job = store.start("download_weights", {"repo": REPO})
    wait_for(lambda: whole(cluster), what="a whole file")
    wait_for(lambda: (store.get(job.id).view().percent or 0) > 0, what="progress on the page")
    assert store.cancel(job.id)
    wait_for(lambda: store.get(job.id).finished, what="the cancelled job's end")
    ended = store.get(job.id)
    assert ended.status == "cancelled"
    assert re.search(r"Cancelled on spark1: .* \d\.\d MB of 8\.0 MB are there and stay", ended.result["message"])
    assert downloaders(cluster) == []
    kept = whole(cluster)
    assert kept
    assert download(cluster, slow_hub).result["outcome"] == "downloaded"
    assert {name: stamp for name, stamp in whole(cluster).items() if name in kept} == kept


REFUSALS = [
    ("org/gated", None, {}, "no_token", "is gated: ask for access"),
    ("org/gated", DENIED, {}, "gated", "has no access yet"),
    ("org/gated", WRONG, {}, "token_refused", "refuses the token"),
    ("org/nothing", None, {}, "not_found", "There is no org/nothing"),
    (REPO, None, {"revision": "nope"}, "no_revision", "no revision “nope”"),
    (REPO, None, {"revision": "../x"}, "bad_revision", "not a branch"),
    ("../../x", None, {}, "bad_repo", "not a repo of the Hub"),
    ("--help/x", None, {}, "bad_repo", "not a repo of the Hub"),
    (REPO, None, {"host": "spark9"}, "no_host", "There is no Spark spark9"),
    (REPO, None, {"weights_download_image": "nope:latest"}, "no_image", "is not on this Spark"),
    (REPO, None, {"hf_endpoint": "http://127.0.0.1:9"}, "hub_unreachable", "cannot be reached from this Spark"),
    (REPO, None, {"hf_endpoint": "file:///etc"}, "hub", "none of http or https"),
]


def test_what_cannot_be_is_refused_in_plain_words_and_nothing_changes(cluster, hub, tmp_path):
    def tree():
        return sorted(str(path) for path in (cluster.root / "spark1/home").rglob("*"))

    before = tree()
    for repo, token, variables, code, words in REFUSALS:
        given = {"hf_endpoint": hub.url, **variables}
        given |= {"token_file": token_file(tmp_path, token)} if token else {}
        run = cluster.run("download_weights", repo=repo, **given)
        assert run.code != 0, (repo, variables)
        assert (run.result["reason"], run.result["changed"]) == (code, False), run.result["message"]
        assert words in run.result["message"]
        assert (token or WRONG) not in run.output
    assert tree() == before


def test_a_token_file_that_others_can_read_or_that_holds_something_else_is_refused(cluster, hub, tmp_path):
    for text, mode, words in (
        (TOKEN, 0o644, "others can read it"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nabcdefgh\n", 0o600, "does not hold a token"),
    ):
        run = download(cluster, hub, repo="org/gated", token_file=token_file(tmp_path, text, mode))
        assert (run.result["reason"], words in run.result["message"]) == ("token_file", True), run.result
    run = download(cluster, hub, repo="org/gated", token_file=str(tmp_path / "none"))
    assert "No such file" in run.result["message"]


def test_the_token_is_in_no_argument_environment_log_or_job(cluster, slow_hub, store, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARK_DEMO_HUB", slow_hub.url)
    job = store.start("download_weights", {"repo": "org/gated", "token_file": token_file(tmp_path, TOKEN)})
    wait_for(lambda: downloaders(cluster), what="the container")
    name = downloaders(cluster)[0]
    (secret,) = (cluster.root / "spark1/home/.spark-control/transfers").glob("*.token")
    assert (secret.stat().st_mode & 0o777, secret.read_text()) == (0o600, TOKEN)
    seen = (
        cluster.host("spark1", "docker", "inspect", name).stdout + cluster.host("spark1", "docker", "top", name).stdout
    )
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if b"tests.hub" not in words:  # a hub is told which token is the right one
            seen += words.decode(errors="replace")
    assert TOKEN not in seen
    wait_for(lambda: store.get(job.id).finished, what="the job's end")
    assert store.get(job.id).status == "successful", store.get(job.id).result
    assert not secret.exists()
    state = cluster.environment["SPARK_CONTROL_STATE"]
    found = subprocess.run(["grep", "-rlF", TOKEN, state, cluster.root], capture_output=True, text=True, check=False)
    assert found.stdout == ""


def test_a_disk_that_is_too_small_is_told_first_with_both_sides(cluster):
    server = Fake()
    run = download(cluster, server.url, repo="org/huge")
    assert run.result["reason"] == "disk_full"
    assert re.search(r"needs 931323 GB more, and [\d.]+ GB are free", run.result["message"])
    assert not cache(cluster, "org/huge").exists()


class Fake:
    """A hub with one repo of one file of a petabyte."""

    def __init__(self):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                commit = "0" * 40
                body: object = {"sha": commit}
                if "/tree/" in self.path:
                    body = [{"type": "file", "path": "model.safetensors", "size": 10**15, "oid": commit}]
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
