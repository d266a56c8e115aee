"""Weights and recipes on the page and in its JSON twin: what is offered, asked, started, and refused."""

import html
import json
import re

import pytest

from tests.support import wait_for
from tests.unit.web_project import DISK, GB, entry, probe

PAGE = {"Accept": "text/html"}
SUGGESTION = {
    "name": "tuned",
    "title": "tuned",
    "nodes": 1,
    "confidence": "medium",
    "warnings": [],
    "flags": [
        {"flag": "--max-model-len", "value": "4096", "words": "--max-model-len {max_model_len}", "confidence": "high",
         "source": {"file": "config.json", "key": "max_position_embeddings"}, "reason": "Its own.", "warning": None},
        {"flag": "--enable-auto-tool-choice", "value": None, "words": "--enable-auto-tool-choice", "confidence": "low",
         "source": None, "reason": "Tools.", "warning": "A <b>guess</b>."},
    ],
    "left_out": [],
    "fit": [],
    "text": "name: tuned\\n",
    "recipe": {
        "name": "tuned",
        "model": "me/tuned",
        "container": "vllm-node",
        "defaults": {"max_model_len": 4096},
        "command": "vllm serve me/tuned --max-model-len {max_model_len} --enable-auto-tool-choice",
    },
}  # fmt: skip


def text(response):
    """The words of a page, in order."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", response.get_data(as_text=True))).split())


def started(project, operation):
    """The variables of the jobs of an operation, the newest last."""
    found = [json.loads(path.read_text()) for path in sorted((project.state / "jobs").glob("2*/job.json"))]
    return [(job["check"], job["variables"]) for job in found if job["operation"] == operation]


def told(operation, **more):
    """The result of a preview."""
    return {"operation": operation, "ok": True, "changed": True, "outcome": "preview", "message": "It would."} | more


def finished(project, client, job_id):
    """Wait for a job's end."""
    wait_for(lambda: client.get(f"/api/jobs/{job_id}").json["status"] not in ("starting", "running"))


def test_every_state_has_its_word_and_its_button(web_project):
    disks = {"spark1": [*DISK, entry("big/pair", GB)], "spark2": DISK}
    web_project.lay("probe", probe(disks))
    page = web_project.client().get("/", headers=PAGE)
    for word in (
        "needs set-up It has no recipe yet.",
        "incomplete On spark1 84 % of it is there.",
        "needs more Sparks",
    ):
        assert word in text(page)
    links = ["/setup?model=me%2Ftuned", "/weights/download?model=meta%2FScout", "/weights/copy?model=big%2Fpair"]
    for link in [*links, "/weights/delete?model=nvidia%2FGemma-4"]:
        assert f'href="{link}"' in page.get_data(as_text=True)
    # What serves cannot be deleted.
    assert '/weights/delete?model=Qwen%2FQwen3.6"' not in page.get_data(as_text=True)


def test_an_empty_disk_says_where_it_was_looked(web_project):
    folder = {"path": "/hf/hub", "kind": "cache", "models": 0, "reason": "it is not there"}
    empty = probe({"spark1": []}, recipes=[], recipe_dirs=["/srv"], serving=None)
    for spark in empty["sparks"]:
        spark["folders"] = [folder]
    web_project.lay("probe", empty)
    assert "spark1: /hf/hub — it is not there." in text(web_project.client().get("/", headers=PAGE))


WRONG = [
    ("delete", {}, 422, "repo"),
    ("delete", {"repo": "a/b", "path": "/a"}, 422, "repo"),
    ("delete", {"repo": "../../etc"}, 422, "repo"),
    ("delete", {"repo": "-rf/x"}, 422, "repo"),
    ("delete", {"repo": "/etc"}, 422, "repo"),
    ("delete", {"path": "etc"}, 422, "path"),
    ("delete", {"path": "/etc"}, 404, "path"),
    ("delete", {"repo": "no/such"}, 404, "repo"),
    ("delete", {"repo": 7}, 422, "repo"),
    ("delete", {"repo": "Qwen/Qwen3.6"}, 409, "repo"),
    ("delete", {"repo": "me/tuned", "hosts": ["spark9"]}, 422, "hosts"),
    ("delete", {"repo": "me/tuned", "hosts": []}, 422, "hosts"),
    ("delete", {"repo": "me/tuned", "hosts": "spark1"}, 422, "hosts"),
    ("delete", {"repo": "me/tuned", "all": True}, 422, "all"),
    ("download", {"repo": "llama"}, 422, "repo"),
    ("download", {"repo": "a/b", "host": "spark9"}, 422, "host"),
    ("download", {"repo": "a/b", "copy_to": ["spark9"]}, 422, "copy_to"),
    ("download", {"repo": "a/b", "revision": "--config"}, 422, "revision"),
    ("download", {"repo": "a/b", "revision": "../x"}, 422, "revision"),
    ("copy", {"repo": "no/such"}, 404, "repo"),
    ("copy", {"repo": "meta/Scout"}, 409, "repo"),
    ("copy", {"repo": "me/tuned", "source": "spark9"}, 422, "source"),
    ("copy", {"repo": "me/tuned", "verify": "maybe"}, 422, "verify"),
    ("recipe", {"model": "../x", "recipe": {}}, 422, "model"),
    ("recipe", {"model": "x", "recipe": []}, 422, "recipe"),
]


@pytest.mark.parametrize(("what", "body", "status", "field"), WRONG)
def test_what_cannot_be_is_refused_by_its_field_and_starts_nothing(web_project, what, body, status, field):
    web_project.lay("probe", probe())
    answer = web_project.client().post(f"/api/models/{what}", json=body)
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (status, field), answer.json
    assert [
        path for path in (web_project.state / "jobs").glob("2*") if "probe" not in (path / "job.json").read_text()
    ] == []


def test_what_is_being_downloaded_is_not_deleted(web_project):
    web_project.lay("probe", probe({"spark1": [entry("me/half", GB, "downloading")]}))
    answer = web_project.client().post("/api/models/delete", json={"repo": "me/half"})
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (409, "repo")


@pytest.mark.parametrize(
    ("what", "body", "operation"),
    [
        ("delete", {"repo": "me/tuned", "hosts": ["spark2"]}, "delete_weights"),
        ("download", {"repo": "a/b", "copy_to": ["spark2"]}, "download_weights"),
        ("copy", {"repo": "me/tuned", "verify": "hash"}, "copy_weights"),
        ("recipe", {"model": "t", "recipe": {"a": 1}}, "save_recipe"),
    ],
)
def test_what_can_be_is_started_as_its_playbook(web_project, what, body, operation):
    web_project.lay("probe", probe())
    web_project.gives(operation, told(operation))
    client = web_project.client()
    answer = client.post(f"/api/models/{what}", json=body | {"dry_run": True})
    assert answer.status_code == 202, answer.json
    assert started(web_project, operation) == [(True, body)]
    finished(web_project, client, answer.json["job_id"])


def test_a_delete_is_asked_with_what_comes_back_and_then_done(web_project):
    web_project.lay("probe", probe())
    gone = [
        {"host": host, "bytes": 8 * GB, "freed": 0, "changed": True, "problem": None} for host in ("spark1", "spark2")
    ]
    web_project.gives("delete_weights", told("delete_weights", hosts=gone, bytes=16 * GB, recipe_removed="/r/t.yaml"))
    client = web_project.client()
    first = client.get("/weights/delete?model=me/tuned", headers=PAGE)
    assert "Checking what that means" in text(first)
    again = re.search(r'hx-get="([^"]+check=[^"]+)"', first.get_data(as_text=True))[1]
    page = wait_for(
        lambda: (found := client.get(html.unescape(again), headers=PAGE)) and "do-it" in found.text and found
    )
    assert "Delete 16 GB" in text(page)
    assert "8 GB on spark1. 8 GB on spark2." in text(page)
    assert "It was suggested from these files and goes with them." in text(page)
    assert "api/models/delete" in text(page)
    done = client.post("/weights/delete", data={"model": "me/tuned"}, headers=PAGE)
    assert done.status_code == 303
    assert (False, {"repo": "me/tuned"}) in started(web_project, "delete_weights")


def test_a_suggestion_is_shown_with_its_reasons_changed_and_saved(web_project):
    web_project.lay("probe", probe())
    look = {"operation": "suggest_recipe", "ok": True, "changed": False, "message": "tuned would run on one Spark."}
    web_project.gives("suggest_recipe", look | {"suggestion": SUGGESTION})
    web_project.gives("save_recipe", told("save_recipe", path="/r/tuned.yaml", text="name: tuned"))
    client = web_project.client()
    asked = client.get("/setup?model=me/tuned", headers=PAGE)
    assert asked.status_code == 303
    where = asked.headers["Location"]
    page = wait_for(lambda: (found := client.get(where, headers=PAGE)) and "setup-save" in found.text and found)
    assert "sure Its own. config.json: max_position_embeddings" in text(page)
    assert "<b>guess" not in page.text
    assert "A <b>guess</b>." in html.unescape(page.text)
    look_id = re.search(r'name="look" value="([^"]+)"', page.text)[1]
    query = {
        "look": look_id,
        "name": "tuned-2",
        "title": "Tuned",
        "flag": ["--max-model-len"],
        "value--max-model-len": "2,048",
    }
    page = client.get("/setup/save", query_string=query, headers=PAGE)
    assert page.status_code == 200, text(page)
    check, wish = started(web_project, "save_recipe")[0]
    assert check
    assert wish["model"] == "tuned-2"
    assert wish["recipe"]["name"] == "Tuned"
    assert wish["recipe"]["defaults"] == {"max_model_len": 2048}
    assert wish["recipe"]["command"] == "vllm serve me/tuned --max-model-len {max_model_len}"
    for wrong, field in (({"name": "../x"}, "name"), ({"value--max-model-len": "many"}, "--max-model-len")):
        answer = client.get("/setup/save", query_string=query | wrong, headers={"Accept": "application/json"})
        assert (answer.status_code, answer.json["errors"][0]["field"]) == (422, field)
    assert client.get("/setup/save", query_string=query | {"look": "x"}, headers=PAGE).status_code == 409


def test_a_suggestion_over_the_api(web_project):
    web_project.lay("probe", probe())
    look = {"operation": "suggest_recipe", "ok": True, "changed": False, "message": "It would."}
    web_project.gives("suggest_recipe", look | {"suggestion": SUGGESTION})
    client = web_project.client()
    assert client.get("/api/models/suggest?repo=me/tuned").json["recipe"]["model"] == "me/tuned"
    web_project.gives("suggest_recipe", look | {"ok": False, "message": "It is an adapter.", "suggestion": None})
    answer = client.get("/api/models/suggest?repo=me/tuned")
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (422, "repo")
    assert "It is an adapter." in answer.json["detail"]
    for query, status in (("repo=me/no", 404), ("repo=x", 422), ("", 422), ("repo=me/tuned&nodes=3", 422)):
        assert client.get(f"/api/models/suggest?{query}").status_code == status
