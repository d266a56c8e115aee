"""What a person sees, in every state: full, empty, wrong, running, failed."""

import html
import re
import time

import pytest

from tests.support import wait_for
from tests.unit.web_project import GB, outcome, probe, spark

PAGE = {"Accept": "text/html"}
FRAGMENT = {"Accept": "text/html", "HX-Request": "true"}
INLINE = re.compile(r"<style|\sstyle=|\son[a-z]+=|javascript:|<script(?![^>]*\ssrc=)|hx-on", re.I)


def text(response):
    """The words of a page, in order."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", response.get_data(as_text=True))).split())


def test_the_dashboard_is_in_the_order_of_need(web_project):
    web_project.lay("probe", probe())
    page = text(web_project.client().get("/", headers=PAGE))
    places = [page.index(word) for word in ("Qwen3.6 35B", "All well.", "spark1 head", "spark2", "Gemma 4")]
    assert places == sorted(places)
    assert "solo on spark1 3 h 12 min" in page
    assert "76 of 122 GB" in page
    assert "It needs 130 GB and 116 GB are free." in page
    assert "recipes/broken.yaml: the field command is missing" in page


def test_only_what_exists_is_shown(web_project):
    page = text(web_project.client().get("/", headers=PAGE))
    for word in ("Services", "Search", "Parakeet", "Qdrant", "Settings"):
        assert word not in page
    assert "Models Jobs Chat" in page


def test_an_empty_installation_says_what_comes_next(web_project):
    client = web_project.client()
    assert "The models appear after the first look" in text(client.get("/", headers=PAGE))
    assert "Nothing has been done yet." in text(client.get("/jobs", headers=PAGE))


def test_no_recipe_at_all_names_the_folder(web_project):
    web_project.lay("probe", probe({"spark1": []}, recipes=[], recipe_dirs=["/srv/recipes"], serving=None))
    page = text(web_project.client().get("/", headers=PAGE))
    assert "There is no model on the Sparks, and no recipe in /srv/recipes." in page
    assert "Nothing is serving" in page


def test_what_is_wrong_is_said(web_project):
    gone = spark("spark2", reachable=False, error="No route to host", memory=None, gpu=None, disk=None)
    full = spark("spark1", disk={"path": "/", "total": 4000 * GB, "free": 60 * GB})
    lease = {"id": "1", "holder": "nightly <eval>", "purpose": "", "expires": time.time() + 600, "seconds_left": 600}
    web_project.lay("probe", probe(sparks=[full, gone], lease=lease))
    page = text(web_project.client().get("/", headers=PAGE))
    assert "spark2 cannot be reached: No route to host." in page
    assert "the disk is nearly full: 60 GB free." in page
    assert "reserved by nightly <eval>" in page
    assert "All well." not in page


def test_a_failed_swap_stays_on_the_dashboard_until_it_is_better(web_project):
    web_project.lay("probe", probe(), ago=10)
    message = "Gemma 4 did not start: it crashed. Qwen3.6 35B is serving again."
    web_project.lay("swap", outcome(kind="rolled back", message=message), ago=30, status="failed")
    client = web_project.client()
    assert message in text(client.get("/", headers=PAGE))
    web_project.lay("swap", outcome(kind="serving"), ago=15)
    assert message not in text(web_project.client().get("/", headers=PAGE))


def test_a_newer_swap_beats_an_older_look(web_project):
    web_project.lay("probe", probe(at=time.time() - 100), ago=100)
    now = {"model": "gemma", "title": "Gemma 4 26B-A4B", "nodes": ["spark1"], "mode": "solo", "since": time.time()}
    web_project.lay("swap", outcome(kind="serving", serving=now), ago=20)
    assert "Serving Gemma 4 26B-A4B" in text(web_project.client().get("/", headers=PAGE))


def test_a_broken_inventory_is_a_sentence(web_project):
    (web_project.folder / "inventory/hosts.yml").write_text("all: {children: [")
    app = web_project.app()
    app.extensions["cluster"].inventory()
    page = app.test_client().get("/", headers=PAGE)
    assert page.status_code == 200
    assert "The inventory cannot be read" in text(page)


def test_no_page_has_anything_inline(web_project):
    web_project.lay("probe", probe())
    swap = outcome(kind="rolled back", message="It <script>alert(1)</script> ended.", log_tail=["<img onerror=x>"])
    job = web_project.lay("swap", swap, status="failed", variables={"model": "gemma"})
    client = web_project.client()
    ask = client.get("/models/gemma/swap", headers=FRAGMENT)
    check = re.search(r"check=([0-9a-f-]+)", ask.text)[1]
    wait_for(lambda: "Checking" not in client.get(f"/models/gemma/swap?check={check}", headers=FRAGMENT).text)
    paths = ["/", "/jobs", f"/jobs/{job}", f"/jobs/{job}/cancel", "/nothing", f"/models/gemma/swap?check={check}"]
    for path in paths:
        for headers in (PAGE, FRAGMENT):
            page = client.get(path, headers=headers)
            tags = " ".join(re.findall(r"<[^>]+>", page.text))
            assert not INLINE.search(tags), (path, INLINE.search(tags))
    script = client.get("/static/app.js").text
    assert "eval(" not in script
    assert ".style" not in script


def test_the_question_tells_what_stops_before_it_asks(web_project):
    web_project.lay("probe", probe())
    web_project.lay("swap", outcome(kind="serving"), ago=4000, variables={"model": "gemma"}, changed=True)
    client = web_project.client()
    first = client.get("/models/gemma/swap", headers=FRAGMENT)
    assert "<dialog" in first.text
    assert "Checking" in text(first)
    check = re.search(r"check=([0-9a-f-]+)", first.text)[1]
    page = wait_for(lambda: _settled(client, f"/models/gemma/swap?check={check}"))
    told = text(page)
    assert "Qwen3.6 35B on spark1; 1 request in flight" in told
    assert "About 4 s, going by earlier runs." in told
    assert "Qwen3.6 35B is put back" in told
    assert "90 GB" in told
    assert "curl -X POST" in told
    assert "ansible-playbook" in told
    assert "--check" not in told
    assert re.search(r"<button[^>]*>Swap to Gemma 4 26B-A4B</button>", page.text)


def _settled(client, path):
    page = client.get(path, headers=FRAGMENT)
    return page if "Checking" not in page.text else None


def test_a_refusal_has_no_button(web_project):
    web_project.lay("probe", probe())
    refused = outcome(
        kind="refused", message="Gemma 4 was not started: it needs 96 GB and 71 GB are free.", reason="memory"
    )
    web_project.gives("swap", refused)
    client = web_project.client()
    check = re.search(r"check=([0-9a-f-]+)", client.get("/models/gemma/swap", headers=FRAGMENT).text)[1]
    page = wait_for(lambda: _settled(client, f"/models/gemma/swap?check={check}"))
    assert "it needs 96 GB and 71 GB are free." in text(page)
    assert "<button" not in page.text.split("<details")[0]


def test_the_question_is_a_whole_page_without_javascript(web_project):
    web_project.lay("probe", probe())
    page = web_project.client().get("/models/gemma/swap", headers=PAGE)
    assert page.text.startswith("<!doctype html>")
    assert 'http-equiv="refresh"' in page.text
    assert '<form class="buttons" method="post" action="/models/gemma/swap"' in page.text


def test_a_swap_runs_and_its_page_tells_how(web_project):
    web_project.lay("probe", probe())
    web_project.gives("swap", outcome(kind="serving", message="Gemma 4 26B-A4B serves on spark1."))
    client = web_project.client()
    started = client.post("/models/gemma/swap")
    assert started.status_code == 303
    job = started.headers["Location"]
    assert "Swapping to Gemma 4 26B-A4B" in text(client.get(job, headers=PAGE))
    assert "Swap to Gemma 4 26B-A4B" in text(client.get("/", headers=PAGE))
    again = client.post("/models/gemma/swap", headers=PAGE)
    assert again.status_code == 409
    assert job in again.text
    busy = client.get("/models/gemma/swap", headers=FRAGMENT)
    assert "is under way" in text(busy)
    web_project.go.touch()
    page = wait_for(lambda: (r := client.get(job, headers=PAGE)) and "took" in r.text and r)
    assert "Gemma 4 26B-A4B serves on spark1." in text(page)
    assert "Wait until a file is there" in text(page)
    assert "sse-connect" not in page.text
    assert "PLAY" in client.get(f"{job}/output").text


def test_htmx_is_sent_to_the_job(web_project):
    web_project.lay("probe", probe())
    web_project.go.touch()
    started = web_project.client().post("/models/gemma/swap", headers=FRAGMENT)
    assert started.status_code == 204
    assert started.headers["HX-Redirect"].startswith("/jobs/")


def test_a_running_job_is_cancelled_after_a_question(web_project):
    web_project.lay("probe", probe())
    client = web_project.client()
    job = client.post("/models/gemma/swap").headers["Location"]
    question = client.get(f"{job}/cancel", headers=FRAGMENT)
    assert "nothing serves until the next swap" in text(question)
    assert client.post(f"{job}/cancel").status_code == 303
    wait_for(lambda: "cancelled" in text(client.get(job, headers=PAGE)))


def test_a_jobs_stream_ends_with_done(web_project):
    web_project.lay("probe", probe())
    job = web_project.lay("swap", outcome(kind="serving"), variables={"model": "gemma"})
    body = web_project.client().get(f"/jobs/{job}/stream").text
    events = re.findall(r"^event: (\w+)$", body, re.M)
    assert events == ["headline", "steps", "end", "done"]


def test_only_the_serving_model_can_be_stopped(web_project):
    web_project.lay("probe", probe())
    client = web_project.client()
    assert client.post("/models/gemma/stop").status_code == 409
    web_project.go.touch()
    assert client.post("/models/qwen/stop").status_code == 303


@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "a%0d%0aX: y", "-x", "a" * 129, "%7B%7B7*7%7D%7D", "unknown", "a%20b"],
)
def test_a_name_that_is_none_is_not_found(web_project, name):
    web_project.lay("probe", probe())
    client = web_project.client()
    for response in (client.get(f"/models/{name}/swap"), client.post(f"/models/{name}/swap")):
        assert response.status_code in (308, 404)
        assert "X" not in response.headers
    assert not [job for job in (web_project.state / "jobs").iterdir() if "probe" not in (job / "job.json").read_text()]


@pytest.mark.parametrize(
    "job", ["lock", "20260101-000000-zzzz", "..", "%2e%2e%2fjobs", "20260101-000000-abcd%00", "x" * 300]
)
def test_an_id_that_is_none_is_not_found(web_project, job):
    client = web_project.client()
    for path in (
        f"/jobs/{job}",
        f"/jobs/{job}/stream",
        f"/jobs/{job}/output",
        f"/api/jobs/{job}",
        f"/api/jobs/{job}/events",
    ):
        assert client.get(path).status_code in (308, 404)
    assert client.get(f"/jobs?before={job}").status_code == 404


def test_a_foreign_page_cannot_make_us_check(web_project):
    web_project.lay("probe", probe())
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert web_project.client().get("/models/gemma/swap", headers=headers).status_code == 403


def test_history_pages_through_older_jobs(web_project):
    for number in range(35):
        web_project.lay("swap", outcome(kind="serving"), ago=100 + 2 * number, variables={"model": "gemma"})
    client = web_project.client()
    first = client.get("/jobs", headers=PAGE)
    assert first.text.count("<tr>") == 31
    older = re.search(r'href="(/jobs\?before=[^"]+)">Older', first.text)[1]
    assert client.get(older, headers=PAGE).text.count("<tr>") == 6


def test_too_many_streams_are_told_to_come_again(web_project):
    job = web_project.lay("swap", outcome(kind="serving"))
    response = web_project.client(STREAM_LIMIT=0).get(f"/jobs/{job}/stream")
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
