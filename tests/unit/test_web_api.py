"""The JSON twin: what it answers, and how it refuses."""

import json
import re
import time

import pytest

from tests.support import wait_for
from tests.unit.web_project import GB, SERVING, outcome, probe, spark


def lease(seconds=600, ahead=0):
    """As probe() told it 20 s ago, of a head Spark whose clock is so many seconds ahead of ours."""
    expires = time.time() + seconds + ahead
    return {"id": "1", "holder": "nightly", "purpose": "", "expires": expires, "seconds_left": seconds + 20}


def jobs(project, operation):
    """The jobs of an operation, as their job.json."""
    found = [json.loads((job / "job.json").read_text()) for job in (project.state / "jobs").glob("2*")]
    return [job for job in found if job["operation"] == operation]


def test_models_tell_what_each_is_and_needs(web_project):
    web_project.lay("probe", probe())
    answer = web_project.client().get("/api/models").json
    models = {model["id"]: model for model in answer["models"]}
    assert models["qwen"]["serving"] is True
    assert models["gemma"]["vision"] is True
    assert models["gemma"]["weights"]["spark1"]["bytes"] == 17 * GB
    assert (models["scout"]["status"], models["scout"]["message"]) == ("incomplete", "On spark1 84 % of it is there.")
    tuned = models["me--tuned"]
    assert (tuned["name"], tuned["model"], tuned["status"]) == (None, "me/tuned", "needs setup")
    assert answer["folders"]["spark1"][0]["path"] == "/hf/hub"
    assert "command is missing" in models["broken"]["error"]
    assert 0 < answer["age_seconds"] < 60


def test_models_before_the_first_look(web_project):
    answer = web_project.client().get("/api/models").json
    assert answer["models"] == []
    assert answer["at"] is None


def test_a_swap_is_accepted_followed_and_ends(web_project):
    web_project.lay("probe", probe())
    web_project.gives("swap", outcome(kind="serving", message="Gemma 4 serves."))
    client = web_project.client()
    answer = client.post("/api/swap", json={"model": "gemma"})
    assert answer.status_code == 202
    job = answer.json["job_id"]
    assert answer.json["url"] == f"/jobs/{job}"
    assert answer.headers["Location"] == f"/api/swap/{job}"
    busy = client.post("/api/swap", json={"model": "gemma"})
    assert busy.status_code == 409
    assert busy.json["job_id"] == job
    assert busy.json["url"] == f"/jobs/{job}"
    web_project.go.touch()
    done = wait_for(lambda: (j := client.get(f"/api/swap/{job}").json)["status"] == "successful" and j)
    assert done["result"]["message"] == "Gemma 4 serves."
    assert [task["name"] for task in done["tasks"]] == ["Wait until a file is there"]
    assert client.get("/api/jobs").json["jobs"][0]["job_id"] == job


def test_a_compressed_body_is_refused_and_a_byte_order_mark_is_not(web_project):
    client = web_project.client()
    for coding, status in (("gzip", 415), ("br", 415), ("identity", 503)):  # nobody has looked at the Sparks yet
        headers = {"Content-Encoding": coding}
        answer = client.post("/api/swap", data=b'{"model": "x"}', content_type="application/json", headers=headers)
        assert answer.status_code == status
    answer = client.post("/api/swap", data=b'\xef\xbb\xbf{"model": "x"}', content_type="application/json")
    assert answer.status_code == 503


def test_a_dry_run_is_a_preview(web_project):
    web_project.lay("probe", probe())
    answer = web_project.client().post("/api/swap", json={"model": "gemma", "dry_run": True})
    assert answer.status_code == 202
    assert jobs(web_project, "swap")[0]["check"] is True


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 422, "model"),
        ({"model": 7}, 422, "model"),
        ({"model": None}, 422, "model"),
        ({"model": ["gemma"]}, 422, "model"),
        ({"model": "gemma", "dry_run": "yes"}, 422, "dry_run"),
        ({"model": "gemma", "force": 1}, 422, "force"),
        ({"model": "gemma", "modle": "x"}, 422, "modle"),
        ({"model": "broken"}, 422, "model"),
        ([], 422, ""),
        ({"model": "unknown"}, 404, None),
        ({"model": "../../etc/passwd"}, 404, None),
        ({"model": "gemma\r\nX: y"}, 404, None),
        ({"model": "{{ lookup('pipe', 'id') }}"}, 404, None),
        ({"model": "gemma; rm -rf ~"}, 404, None),
        ({"model": "gemma\n"}, 404, None),
        ({"model": ""}, 404, None),
    ],
)
def test_a_malformed_swap_names_the_field(web_project, body, status, field):
    web_project.lay("probe", probe())
    answer = web_project.client().post("/api/swap", json=body)
    assert answer.status_code == status
    assert answer.mimetype == "application/problem+json"
    assert (answer.json["errors"][0]["field"] if field is not None else None) == field
    assert jobs(web_project, "swap") == []


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"model": "gemma", "model": "qwen"}', "application/json", 400),
        (b"[" * 50_000, "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"model=gemma", "application/x-www-form-urlencoded", 415),
        (b'{"model": "gemma"}', "text/plain", 415),
        (b"", None, 415),
    ],
)
def test_what_is_no_json_is_refused(web_project, data, kind, status):
    web_project.lay("probe", probe())
    answer = web_project.client().post("/api/swap", data=data, content_type=kind)
    assert answer.status_code == status
    assert answer.json["status"] == status


def test_a_reserved_cluster_is_locked_unless_forced(web_project):
    web_project.lay("probe", probe(lease=lease()))
    client = web_project.client()
    answer = client.post("/api/swap", json={"model": "gemma"})
    assert answer.status_code == 423
    assert answer.json["holder"] == "nightly"
    assert 590 <= answer.json["seconds_left"] <= 600
    web_project.go.touch()
    assert client.post("/api/swap", json={"model": "gemma", "force": True}).status_code == 202
    assert jobs(web_project, "swap")[0]["variables"] == {"model": "gemma", "force": True}


def test_an_expired_reservation_holds_nobody_up(web_project):
    web_project.lay("probe", probe(lease=lease(-1)))
    web_project.go.touch()
    client = web_project.client()
    assert client.get("/api/swap/lock").json["lease"] is None
    assert client.post("/api/swap", json={"model": "gemma"}).status_code == 202


def test_a_dead_jobs_lease_holds_nobody_up(web_project):
    cut = web_project.lay("swap", {"message": "It was cut off."}, status="interrupted", ago=30)
    web_project.lay("probe", probe(lease=lease() | {"id": cut, "holder": "the page"}))
    web_project.go.touch()
    client = web_project.client()
    assert client.get("/api/swap/lock").json["lease"] is None
    assert client.get("/health").json["lease"] is None
    assert client.post("/api/swap", json={"model": "gemma"}).status_code == 202


def test_a_name_that_is_no_models_tells_those_like_it(web_project):
    web_project.lay("probe", probe())
    client = web_project.client()
    assert client.post("/api/swap", json={"model": "gema"}).json["detail"].endswith("Did you mean gemma?")
    assert client.post("/api/swap", json={"model": "Gem"}).json["detail"].endswith("Did you mean gemma?")
    assert client.post("/api/swap", json={"model": "zzz"}).json["detail"] == "There is no model named zzz."


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_a_reservation_ends_when_it_does_by_any_clock(web_project, ahead):
    web_project.lay("probe", probe(lease=lease(ahead=ahead)))
    assert 590 <= web_project.client().get("/api/swap/lock").json["lease"]["seconds_left"] <= 600


def test_the_lock_is_no_job(web_project):
    web_project.lay("probe", probe(lease=lease()))
    answer = web_project.client().get("/api/swap/lock")
    assert answer.status_code == 200
    assert answer.json["lease"]["holder"] == "nightly"


def test_a_reservations_token_is_told_once_and_kept_nowhere(web_project):
    web_project.lay("probe", probe())
    client = web_project.client()
    answer = client.post("/api/swap/lock", json={"holder": "eval", "purpose": "night", "seconds": 60})
    assert answer.status_code == 202
    token = answer.json["token"]
    wait_for(lambda: client.get(f"/api/jobs/{answer.json['job_id']}").json["status"] == "successful")
    for file in (web_project.state / "jobs").rglob("*"):
        assert not file.is_file() or token.encode() not in file.read_bytes()
    gone = client.delete("/api/swap/lock", json={"token": token})
    assert gone.status_code == 202
    variables = {job["variables"]["state"]: job["variables"] for job in jobs(web_project, "gpu_lease")}
    assert variables["present"]["token_hash"] == variables["absent"]["token_hash"]
    assert re.fullmatch(r"[0-9a-f]{64}|\*+", variables["present"]["token_hash"])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"seconds": 60}, "holder"),
        ({"holder": "x"}, "seconds"),
        ({"holder": "x", "seconds": 0}, "seconds"),
        ({"holder": "x", "seconds": True}, "seconds"),
        ({"holder": "x", "seconds": 10**9}, "seconds"),
        ({"holder": "x", "seconds": 1.5}, "seconds"),
        ({"holder": "a\nb", "seconds": 60}, "holder"),
        ({"holder": "", "seconds": 60}, "holder"),
        ({"holder": "x" * 81, "seconds": 60}, "holder"),
        ({"holder": "x", "purpose": 4, "seconds": 60}, "purpose"),
        ({"holder": "x", "seconds": 60, "token": "mine"}, "token"),
    ],
)
def test_a_malformed_reservation_names_the_field(web_project, body, field):
    answer = web_project.client().post("/api/swap/lock", json=body)
    assert answer.status_code == 422
    assert answer.json["errors"][0]["field"] == field


def test_events_are_a_list_or_a_stream_that_resumes(web_project):
    web_project.lay("probe", probe())
    web_project.go.touch()
    client = web_project.client()
    job = client.post("/api/swap", json={"model": "gemma"}).json["job_id"]
    wait_for(lambda: client.get(f"/api/jobs/{job}").json["status"] == "successful")
    path = f"/api/jobs/{job}/events"
    listed = client.get(path, headers={"Accept": "application/json"}).json
    assert listed["ended"] is True
    counters = [event["counter"] for event in listed["events"]]
    assert counters == sorted(counters)
    stream = client.get(path).text
    assert [int(number) for number in re.findall(r"^id: (\d+)$", stream, re.M)] == counters
    last = re.findall(r"^event: (\w+)\ndata: (.*)$", stream, re.M)[-1]
    assert last[0] == "end"
    assert json.loads(last[1])["status"] == "successful"
    rest = client.get(path, headers={"Last-Event-ID": str(counters[2])}).text
    assert [int(number) for number in re.findall(r"^id: (\d+)$", rest, re.M)] == counters[3:]
    assert client.get(f"{path}?after={counters[-1]}").text.count("id: ") == 0
    assert client.get(f"{path}?after=x").status_code == 422


def test_cancel(web_project):
    web_project.lay("probe", probe())
    client = web_project.client()
    job = client.post("/api/swap", json={"model": "gemma"}).json["job_id"]
    assert client.post(f"/api/jobs/{job}/cancel").status_code == 202
    wait_for(lambda: client.get(f"/api/jobs/{job}").json["status"] == "cancelled")
    assert client.post(f"/api/jobs/{job}/cancel").status_code == 409


def test_the_list_of_jobs_is_paged(web_project):
    for number in range(5):
        web_project.lay("swap", outcome(kind="serving"), ago=100 + 2 * number)
    client = web_project.client()
    first = client.get("/api/jobs?limit=2").json["jobs"]
    rest = client.get(f"/api/jobs?before={first[-1]['job_id']}").json["jobs"]
    assert (len(first), len(rest)) == (2, 3)
    for query in ("limit=0", "limit=201", "limit=-1", "limit=x", "before=x"):
        assert client.get(f"/api/jobs?{query}").status_code == 422


def test_an_empty_place_in_the_list_of_jobs_is_refused(web_project):
    answer = web_project.client().get("/api/jobs?before=")
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (422, "before")


def test_a_whole_number_may_be_written_with_a_point(web_project):
    client = web_project.client()
    wish = {"holder": "ComfyUI", "seconds": 60.0}
    job = client.post("/api/swap/lock", json=wish).json["job_id"]
    assert client.get(f"/api/jobs/{job}").json["variables"]["seconds"] == 60
    for seconds in (60.5, 0.0, True, 1e300):
        answer = client.post("/api/swap/lock", json=wish | {"seconds": seconds})
        assert (answer.status_code, answer.json["errors"][0]["field"]) == (422, "seconds")


def test_health_is_ok_degraded_or_unknown(web_project):
    unknown = web_project.client().get("/health")
    assert (unknown.status_code, unknown.json["status"]) == (503, "unknown")
    web_project.lay("probe", probe(serving=None))
    good = web_project.client().get("/health")
    assert (good.status_code, good.json["status"]) == (200, "ok")
    assert [entry["host"] for entry in good.json["sparks"]] == ["spark1", "spark2"]
    gone = spark("spark2", reachable=False, error="No route to host")
    web_project.lay("probe", probe(serving=SERVING, sparks=[spark("spark1"), gone], at=time.time()), ago=5)
    bad = web_project.client().get("/health")
    assert (bad.status_code, bad.json["status"]) == (503, "degraded")
    assert any("No route to host" in text for text in bad.json["problems"])


def test_healthz_needs_nothing(web_project):
    assert web_project.client().get("/healthz").json == {"status": "ok"}
