"""The inventory as objects, vLLM over HTTP, and when a look at the Sparks is due."""

import html
import json
import os
import re
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support import wait_for
from tests.unit.web_project import outcome, probe
from webui.cluster import read_inventory
from webui.jobs import JobStore
from webui.watch import Cluster, Live, LivePoller


def read(tmp_path, text):
    (tmp_path / "hosts.yml").write_text(text)
    return read_inventory([tmp_path / "hosts.yml"], tmp_path)


def test_an_inventory_of_any_size_is_read(tmp_path):
    hosts = "".join(f"    s{number}: {{ansible_host: 127.0.0.{number}}}\n" for number in range(1, 6))
    text = "sparks:\n  hosts:\n" + hosts + "vllm:\n  hosts:\n    s3:\n    s1:\nqdrant:\n  hosts:\n    s5:\n"
    inventory = read(tmp_path, text + "all:\n  vars:\n    vllm_port: '{{ 8000 + 888 }}'\n")
    assert inventory.error is None
    assert [host.name for host in inventory.sparks] == ["s1", "s2", "s3", "s4", "s5"]
    assert inventory.head.name == "s3"
    assert inventory.service("vllm", "vllm_port", 1)[0] == ("s3", "http://127.0.0.3:8888")
    assert inventory.service("qdrant", "qdrant_port", 6333) == [("s5", "http://127.0.0.5:6333")]
    assert inventory.service("kokoro", "kokoro_port", 8880) == []


def test_variables_come_from_group_vars_and_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("NET", "127.0.9")
    (tmp_path / "group_vars/all").mkdir(parents=True)
    (tmp_path / "group_vars/all/settings.yml").write_text("vllm_port: 9001\n")
    host = "{ansible_host: \"{{ lookup('ansible.builtin.env', 'NET') }}.4\"}"
    inventory = read(tmp_path, f"sparks: {{hosts: {{a: {host}}}}}\nvllm: {{hosts: {{a: }}}}\n")
    assert inventory.service("vllm", "vllm_port", 8888) == [("a", "http://127.0.9.4:9001")]


@pytest.mark.parametrize(
    "text", ["sparks: [", "sparks: {hosts: {a: {ansible_host: '{{ nothing }}'}}}", "- 1", "", "other: {hosts: {a: }}"]
)
def test_a_broken_inventory_is_a_sentence(tmp_path, text):
    inventory = read(tmp_path, text)
    assert inventory.error
    assert "Traceback" not in inventory.error


def test_an_inventory_that_is_not_there_is_a_sentence(tmp_path):
    assert "does not exist" in read_inventory([tmp_path / "none.yml"], tmp_path).error


def test_reading_an_inventory_leaves_the_environment_as_it_was(tmp_path, monkeypatch):
    monkeypatch.delenv("ANSIBLE_CONFIG", raising=False)
    before = dict(os.environ)
    assert read(tmp_path, "all: {hosts: {a: {ansible_host: 127.0.0.1}}}\n").hosts
    assert dict(os.environ) == before


def test_a_name_that_does_not_resolve_leaves_the_rest(tmp_path):
    inventory = read(tmp_path, "sparks: {hosts: {a: {ansible_host: no.such.invalid}, b: {ansible_host: 127.0.0.1}}}")
    assert [host.address for host in inventory.sparks] == [None, "127.0.0.1"]


def test_an_inventory_is_read_again_when_it_changes(web_project):
    cluster = web_project.app().extensions["cluster"]
    assert len(cluster.inventory().sparks) == 2
    path = web_project.folder / "inventory/hosts.yml"
    path.write_text(path.read_text().replace("spark2: {ansible_host: 127.0.0.1}", "spark2: , spark3: "))
    cluster._inventory_checked = 0.0
    assert len(cluster.inventory().sparks) == 3


class Vllm(BaseHTTPRequestHandler):
    """A server with vLLM's three addresses."""

    tokens = 1000.0
    asked = 0
    model, dead, go = "qwen", False, None

    def do_GET(self):
        type(self).asked += 1
        self.go.wait(20)
        if self.dead:
            return self.send_error(503)
        labels = '{engine="0",model_name="qwen"}'
        answer = {
            "/health": "",
            "/v1/models": json.dumps({"object": "list", "data": [{"id": self.model, "object": "model"}]}),
            "/metrics": f"# HELP x\nvllm:num_requests_running{labels} 2.0\nvllm:num_requests_waiting{labels} 1.0\n"
            f"vllm:generation_tokens_total{labels} {self.tokens}\n",
        }[self.path].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        return None

    def log_message(self, *_):
        """Be quiet."""


@pytest.fixture
def vllm():
    handler = type("Handler", (Vllm,), {"go": threading.Event()})
    handler.go.set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()


def test_vllm_is_asked_at_most_every_five_seconds(vllm):
    url, handler = vllm
    poller = LivePoller()
    first = poller.poll(url)
    assert (first.answers, first.models, first.running, first.waiting) == (True, ("qwen",), 2, 1)
    assert first.tokens_per_second is None
    assert poller.poll(url) is first
    assert handler.asked == 3


def test_the_speed_comes_from_two_answers(vllm):
    url, handler = vllm
    poller = LivePoller()
    poller.EVERY = 0.0
    first = poller.poll(url)
    handler.tokens += 100
    second = poller.poll(url)
    assert second.tokens_per_second == pytest.approx(100 / (second.at - first.at))


def test_silence_is_not_an_error():
    live = LivePoller().poll("http://127.0.0.1:9")
    assert live.answers is False
    assert live.at > 0
    assert LivePoller().poll(None).answers is False


@pytest.fixture
def client(web_project, vllm):
    """A client of an app in whose inventory that vLLM is, and the app's cluster: Qwen serves, nobody has watched."""
    path = web_project.folder / "inventory/hosts.yml"
    path.write_text(path.read_text().replace("vllm_port: 9", f"vllm_port: {vllm[0].rpartition(':')[2]}"))
    web_project.lay("probe", probe())
    app = web_project.app()
    app.extensions["cluster"].inventory()
    app.extensions["cluster"].MOMENT = 20.0  # a busy machine may need more than a moment
    return app.test_client(), app.extensions["cluster"]


def text(client, path="/"):
    """The words of a page."""
    page = client.get(path, headers={"Accept": "text/html"}).get_data(as_text=True)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def first_events(client):
    """The first fragments that an open dashboard gets."""
    events = client.get("/events", buffered=False)
    seen = ""
    for piece in events.response:
        seen += piece.decode()
        if "event: serving" in seen:
            break
    events.close()
    return seen


@pytest.mark.parametrize("state", [Live(), Live(at=1.0, answers=True, models=("other",)), Live(at=1.0, answers=False)])
def test_a_page_shows_what_answers_now_although_nobody_has_watched(client, state):
    page, cluster = client
    for address in ("/", "/chat"):
        cluster.live.state = state
        shown = text(page, address)
        assert "Qwen3.6 35B" in shown
        assert "does not answer" not in shown
        assert "Last seen" not in shown
    cluster.live.state = state
    assert "All well." in first_events(page)
    cluster.live.state = state
    assert "All well." in text(page)
    cluster.live.state = state
    models = page.get("/api/models").json["models"]
    assert [row["state"] for row in models if row["serving"]] == ["serving"]


def test_a_page_says_that_nothing_answers_although_something_did(client, vllm):
    page, cluster = client
    assert "All well." in text(page)
    vllm[1].dead = True
    cluster.live.state = replace(cluster.live.state, at=time.time() - 6)
    assert "Qwen3.6 35B does not answer" in text(page)
    assert "Qwen3.6 35B does not answer" in text(page, "/chat")


def test_another_model_that_answers_is_named(client, vllm):
    page, cluster = client
    assert "Serving Qwen3.6 35B" in text(page)
    vllm[1].model = "gemma"
    cluster.live.state = replace(cluster.live.state, at=time.time() - 6)
    assert "Serving gemma" in text(page)


def test_an_answer_from_before_our_own_change_is_none(client, web_project):
    page, cluster = client
    cluster.live.state = Live(at=time.time() - 2, answers=False)
    assert "does not answer" in text(page)
    web_project.lay("swap", outcome(kind="serving"), ago=5)  # it ended a second ago
    cluster.facts(fresh=True)
    assert "All well." in text(page)


def test_what_is_not_answered_in_a_moment_is_shown_as_old(client, vllm):
    page, cluster = client
    assert "All well." in text(page)
    cluster.MOMENT = Cluster.MOMENT
    vllm[1].go.clear()
    try:
        for ago, said in ((180, "for 3 min"), (time.time(), "has not said yet")):
            at = time.time() - ago
            cluster.live.state = replace(cluster.live.state, at=0.0 if at < 1 else at)
            shown = text(page)
            assert "Last seen serving Qwen3.6 35B" in shown
            assert said in shown
            assert "All well." not in shown
            assert "Last seen serving Qwen3.6 35B" in text(page, "/chat")
    finally:
        vllm[1].go.set()
    wait_for(lambda: "All well." in text(page))


def test_pages_that_are_opened_at_once_ask_once(client, vllm):
    page, cluster = client
    cluster.MOMENT = 0.01
    vllm[1].go.clear()
    before = vllm[1].asked
    for _ in range(5):
        text(page)
    assert vllm[1].asked - before <= 1
    vllm[1].go.set()


class Store(JobStore):
    """A JobStore that notes what it would start."""

    started: list

    def start(self, operation, variables, **more):
        self.started.append(operation)
        return type("Job", (), {"id": "20260101-000000-0000"})()

    def get(self, job_id):
        found = super().get(job_id)
        return (
            found or type("Ended", (), {"finished": True, "result": probe(), "view": None, "changed": self.changed})()
        )


@pytest.fixture
def cluster(web_project):
    store = Store(web_project.state, web_project.folder)
    store.started, store.changed = [], True
    made = Cluster(store, web_project.folder, "inventory/hosts.yml")
    made.live.poll = lambda url: made.live.state
    return made


def test_a_look_is_due_when_the_last_one_is_old(cluster, web_project):
    cluster.tick()
    assert cluster.store.started == ["probe"]
    cluster.tick()
    cluster.tick()
    assert cluster.store.started == ["probe"]


def test_no_look_is_due_when_the_last_one_is_fresh(cluster, web_project):
    web_project.lay("probe", probe())
    cluster.tick()
    assert cluster.store.started == []
    cluster.look()
    cluster.tick()
    assert cluster.store.started == ["probe"]


def test_a_look_follows_every_change(cluster, web_project):
    web_project.lay("probe", probe())
    cluster.tick()
    cluster._changing = {"20260101-000000-ffff"}
    cluster.tick()
    assert cluster.store.started == ["probe"]


def test_no_look_follows_what_changed_nothing(cluster, web_project):
    web_project.lay("probe", probe())
    cluster.tick()
    cluster.store.changed = False
    cluster._changing = {"20260101-000000-ffff"}
    cluster.tick()
    assert cluster.store.started == []


def test_a_look_follows_a_new_recipe(cluster, web_project):
    folder = web_project.folder / "recipes"
    folder.mkdir()
    web_project.lay("probe", probe(recipe_dirs=[str(folder)]))
    cluster.tick()
    assert cluster.store.started == []
    (folder / "new.yaml").write_text("model: x")
    cluster.tick()
    assert cluster.store.started == ["probe"]


def test_facts_outlive_the_job_they_came_from(cluster, web_project):
    import shutil

    job = web_project.lay("probe", probe())
    assert cluster.facts(fresh=True).probe
    shutil.rmtree(web_project.state / "jobs" / job)
    web_project.lay("swap", outcome(kind="serving"))
    assert cluster.facts(fresh=True).probe


def test_a_preview_is_no_news(cluster, web_project):
    web_project.lay("probe", probe())
    web_project.lay("swap", outcome(kind="preview", serving=None), ago=5, check=True)
    assert cluster.facts(fresh=True).serving["model"] == "qwen"
