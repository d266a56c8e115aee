"""What a GET may start: one run a question, a few in all, each with an end, and none for another site's page."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import wait_for
from tests.unit.web_project import TASKS, probe
from webui.core import looks

STARTS = [
    "/setup?model=me/tuned",
    "/api/models/suggest?repo=me/tuned",
    "/models/gemma/swap",
    "/models/qwen/stop",
    "/weights/download?model=org/new",
    "/weights/copy?model=me/tuned",
    "/weights/delete?model=me/tuned",
]
ELSEWHERE = [
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://[::1"},
    {"Referer": "http://evil.example/page"},
    {"Referer": "http://localhost.evil.example/"},
    {"Referer": "http://[::1"},
    {"Referer": "localhost"},
]
OURS = [
    {},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "same-origin", "Referer": "http://localhost/"},
    {"Referer": "http://localhost/models"},
    {"Origin": "http://localhost"},
]


@pytest.fixture
def project(web_project):
    """A project whose looks wait until they are told to go on."""
    web_project.lay("probe", probe())
    result = {"operation": "suggest_recipe", "ok": True, "changed": False, "message": "", "suggestion": {"name": "x"}}
    web_project.gives("suggest_recipe", result)
    for operation in ("suggest_recipe", "download_weights"):
        values = {"go": web_project.go, "operation": "swap", "result": web_project.folder / f"results/{operation}.json"}
        text = (TASKS % values).replace("not ansible_check_mode", "true")
        (web_project.folder / f"roles/small/tasks/{operation}.yml").write_text(text)
    return web_project


def started(project):
    """(operation, variables, status) of the runs that there are, but for the look at the Sparks."""
    found = project.app().extensions["jobs"].list(200, background=True)
    return [(job.operation, job.variables, job.status) for job in found if job.operation != "probe"]


@pytest.mark.parametrize("headers", ELSEWHERE, ids=json.dumps)
def test_another_sites_page_starts_nothing(project, headers):
    client = project.client()
    for address in STARTS:
        assert client.get(address, headers=headers).status_code == 403, address
    assert started(project) == []


def test_our_own_page_and_a_program_may_and_get_the_same_run(project):
    client = project.client()
    addresses = {client.get(STARTS[0], headers=headers).headers["Location"] for headers in OURS}
    assert len(addresses) == 1
    assert [operation for operation, _, _ in started(project)] == ["suggest_recipe"]


def test_many_who_ask_the_same_get_one_run(project):
    app = project.app()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(app.test_client().get, STARTS[1]) for _ in range(8)]
        wait_for(lambda: started(project))
        project.go.touch()
        assert [one.result().status_code for one in asked] == [200] * 8
    assert len(started(project)) == 1


def test_only_a_few_run_at_once(project, monkeypatch):
    monkeypatch.setattr(looks, "AT_ONCE", 2)
    client = project.client()
    names = ("me/tuned", "meta/Scout", "Qwen/Qwen3.6", "nvidia/Gemma-4")
    statuses = [client.get(f"/setup?model={name}").status_code for name in names]
    assert statuses == [303, 303, 503, 503]
    refused = client.get("/weights/download?model=org/new")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert client.get(f"/api/models/suggest?repo={names[2]}").status_code == 503
    assert len(started(project)) == 2
    assert client.get(f"/setup?model={names[0]}").status_code == 303  # that one runs already


def test_a_run_that_does_not_end_is_ended(project, monkeypatch):
    monkeypatch.setattr(looks, "LONGEST", 0.1)
    project.client().get(STARTS[0])
    wait_for(lambda: started(project)[0][2] == "cancelled", 60)
