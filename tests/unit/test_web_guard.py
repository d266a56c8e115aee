"""What every request passes: host, origin, token, size, headers, errors, static files."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import PROJECT
from tests.gateway import free_port
from webui.guard import host_allowed, rules, same_origin

OURS = """localhost:9999 127.0.0.1 [::1]:9999 192.168.1.5:9999 10.0.0.1 172.20.0.1 100.101.102.103:9999 spark.local:9999
SPARK.LOCAL 169.254.3.4 [fd00::1] [fe80::1%eth0]:9999 mine.example:9999 fe80.local.
host.docker.internal:9999 HOST.docker.internal. spark-control.startos:9999 spark.home.arpa spark.fritz.box
a.b.fritz.box:9999"""
OTHERS = r"""evil.example evil.example:9999 8.8.8.8 127.0.0.1.evil.example localhost.evil.example notlocal a@localhost
localhost:x localhost/.. localhost\evil [::1 evil.example#.local [2606:4700::1] fritz.box evilfritz.box internal
internal.evil.example docker.internal.com evil.example?.local startos.com [::1]x ::: [v1.x] localhost:99999 %00.local@x
mine.example.evil.example xmine.example"""


@pytest.mark.parametrize("host", OURS.split())
def test_our_own_names_are_answered(host):
    assert host_allowed(host, {"mine.example", ".fritz.box"})


@pytest.mark.parametrize("host", ["", *OTHERS.split()])
def test_other_names_are_not(host):
    assert not host_allowed(host, {"mine.example", ".fritz.box"})


def test_a_rebound_name_gets_nothing(web_project):
    response = web_project.client().get("/api/models", headers={"Host": "evil.example"})
    assert response.status_code == 403
    assert response.mimetype == "application/problem+json"


@pytest.mark.parametrize(
    ("headers", "good"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, False),
        ({"Origin": "http://localhost"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://localhost:1234"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Sec-Fetch-Site": "none", "Origin": "chrome-extension://abcdef"}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://in-front.example"}, True),
        ({"Sec-Fetch-Site": "x"}, False),
        ({"Referer": "http://evil.example/"}, True),  # a browser that sends no Origin is none of today
    ],
)
def test_only_our_own_page_may_change_something(headers, good, web_project):
    assert same_origin({"Host": "localhost", **headers}) is good
    response = web_project.client().post("/look", headers=headers)
    assert response.status_code == (303 if good else 403)


SHAPES = [
    "http://[::1",
    "http://[",
    "http://]",
    "//",
    "http://a:b:c",
    "http://[v1.x]/",
    "http://\xff",
    "http://a@localhost",
]
SHAPES += [
    "",
    " ",
    ",",
    "http://localhost, http://localhost",
    "http://localhost:99999999",
    "x" * 5000,
    "http://%zz",
    "\t",
]
SHAPES += [
    "http://localhost#@evil.example",
    "null",
    "http:///",
    "javascript:alert(1)",
    "http://\uff0e",
    "bearer \xe9",
    "[]",
]


@pytest.mark.parametrize("name", ["Origin", "Referer", "Sec-Fetch-Site", "Host", "Authorization", "Cookie"])
@pytest.mark.parametrize("value", SHAPES)
def test_a_header_of_any_shape_is_no_error_of_ours(web_project, name, value):
    client = web_project.client(TESTING=False)
    value = value.encode("utf-8").decode("latin-1")
    for method, path in (("POST", "/look"), ("GET", "/healthz"), ("POST", "/v1/chat/completions"), ("GET", "/setup")):
        response = client.open(path, method=method, headers={name: value})
        assert response.status_code < 500, (path, response.text)


# --- pages of other sites ---------------------------------------------------------------------------------------------

NAMED = {"ORIGINS": "https://chat.lan, app://obsidian.md,http://192.168.1.5:3000"}
SHARED = ["/v1/chat/completions", "/v1/models", "/v1/nothing", "/v2/rerank", "/scrub", "/rehydrate", "/api/search"]
SHARED += ["/api/audio/label-merge"]
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, x-stainless-os"}


@pytest.mark.parametrize(
    "origin", ["https://chat.lan", "app://obsidian.md", "http://192.168.1.5:3000", "HTTPS://Chat.lan"]
)
@pytest.mark.parametrize("path", SHARED)
def test_a_page_of_a_named_site_may_ask_and_read(web_project, origin, path):
    client = web_project.client(**NAMED)
    asked = client.options(path, headers={"Origin": origin, "Sec-Fetch-Site": "cross-site", **PREFLIGHT})
    assert asked.status_code == 204
    assert asked.headers["Access-Control-Allow-Origin"] == origin
    assert asked.headers["Access-Control-Allow-Headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert "POST" in asked.headers["Access-Control-Allow-Methods"]
    answer = client.post(path, data=b"x", headers={"Origin": origin, "Sec-Fetch-Site": "cross-site"})
    assert answer.status_code in (404, 405, 415)
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert "Origin" in answer.headers["Vary"]
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["http://chat.lan", "https://chat.lan:8443", "https://chat.lan.evil.example", "null", "*"]
)
@pytest.mark.parametrize("path", SHARED)
def test_a_page_of_another_site_may_not_and_is_told_what_to_do(web_project, origin, path):
    client = web_project.client(**NAMED)
    for answer in (
        client.options(path, headers={"Origin": origin, **PREFLIGHT}),
        client.post(path, headers={"Origin": origin}),
    ):
        assert answer.status_code == 403
        assert "Access-Control-Allow-Origin" not in answer.headers
        told = answer.json
        told = told["error"]["message"] if "error" in told else told["detail"]
        assert ("SPARK_CONTROL_ORIGINS" in told) is origin.startswith("http")


@pytest.mark.parametrize(
    "path", ["/api/swap", "/look", "/token", "/api/searches", "/scrubber", "/api/models/delete", "/chat"]
)
def test_a_named_site_reaches_nothing_that_changes_the_cluster(web_project, path):
    client = web_project.client(**NAMED)
    for method in ("POST", "OPTIONS"):
        answer = client.open(path, method=method, headers={"Origin": "https://chat.lan", **PREFLIGHT})
        assert answer.status_code == 403
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_program_without_an_origin_passes_everywhere(web_project):
    client = web_project.client()
    for path in (*SHARED, "/api/swap", "/look"):
        assert client.post(path, data=b"x").status_code != 403


def test_a_preflight_needs_no_token_and_a_refusal_can_be_read(web_project, tmp_path):
    file = tmp_path / "token"
    file.write_text("a-very-long-token-of-ours\n")
    file.chmod(0o600)
    client = web_project.client(TOKEN_FILE=file, **NAMED)
    headers = {"Origin": "https://chat.lan"}
    assert client.options("/v1/models", headers=headers | PREFLIGHT).status_code == 204
    refused = client.get("/v1/models", headers=headers)
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, "https://chat.lan")
    for scheme in ("bearer", "BEARER", "Bearer "):
        given = headers | {"Authorization": f"{scheme} a-very-long-token-of-ours"}
        assert client.get("/v1/models", headers=given).status_code == 200


NO_ORIGINS = [
    "*",
    "https://*.lan",
    "null",
    "chat.lan",
    "https://chat.lan/",
    "https://chat.lan/x",
    "http://",
    "https://a b",
]
NO_ORIGINS += ["ftp//x", "https://chat.lan:99999", "https://user@chat.lan", "https://chat.lan;https://b", "http://[::1"]


@pytest.mark.parametrize("text", NO_ORIGINS)
def test_an_origin_that_is_none_ends_the_start(text):
    with pytest.raises(SystemExit, match="SPARK_CONTROL_ORIGINS"):
        rules({"ORIGINS": f"https://good.lan, {text}"})


@pytest.mark.parametrize(
    "text", ["http://spark.lan", "spark.lan:9999", "spark.lan/x", "*", "*.lan", "a b", "-x", "..", "ü.lan"]
)
def test_a_host_that_is_none_ends_the_start(text):
    with pytest.raises(SystemExit, match="SPARK_CONTROL_HOSTS"):
        rules({"HOSTS": f"good.lan, {text}"})


def test_what_the_rules_name():
    found = rules(
        {"HOSTS": " Spark.LAN , .fritz.box,[fd00::1], 203.0.113.5 ", "ORIGINS": "https://Chat.lan,http://[fd00::2]:80"}
    )
    assert {"spark.lan", ".fritz.box", "fd00::1", "203.0.113.5"} <= found.names
    assert host_allowed("203.0.113.5:9999", found.names)
    assert found.origins == {"https://chat.lan", "http://[fd00::2]:80"}
    assert rules({}).origins == frozenset()


@pytest.mark.parametrize(
    ("name", "value"),
    [("SPARK_CONTROL_ORIGINS", "*"), ("SPARK_CONTROL_HOSTS", "http://x"), ("SPARK_CONTROL_TOKEN_FILE", "/nonexistent")],
)
def test_a_wrong_setting_ends_the_start_once_and_in_plain_words(tmp_path, name, value):
    keep = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    command = [sys.executable, "-m", "webui.cli", "serve", "--host", "127.0.0.1", "--port", str(free_port())]
    environment = keep | {"SPARK_CONTROL_STATE": str(tmp_path), name: value}
    run = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert value in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "/chat/completions", "/v1/chat/completions"),
        ("POST", "/completions", "/v1/completions"),
        ("POST", "/embeddings", "/v1/embeddings"),
        ("POST", "/rerank", "/v1/rerank"),
        ("GET", "/models", "/v1/models"),
        ("POST", "/v1/v1/chat/completions", "/v1/chat/completions"),
        ("POST", "/openai/v1/chat/completions", "/v1/chat/completions"),
        ("POST", "/v1/chat/completions/", "/v1/chat/completions"),
    ],
)
def test_a_base_url_that_is_none_is_told_which_is(web_project, method, path, meant):
    answer = web_project.client().open(path, method=method, json={} if method == "POST" else None)
    assert (answer.status_code, answer.mimetype) == (404, "application/json")
    error = answer.json["error"]
    assert (error["code"], error["type"]) == ("unknown_url", "invalid_request_error")
    assert f"http://localhost/v1, so ask {meant}." in error["message"]


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", "/models/x/y", "/chat"])
def test_any_other_address_is_not_guessed(web_project, path):
    answer = web_project.client().open(path, method="DELETE", headers={"Accept": "*/*"})
    assert answer.status_code in (404, 405)
    assert "base URL" not in answer.text
    assert "base URL" not in web_project.client().get("/models", headers={"Accept": "text/html,*/*"}).text


@pytest.mark.parametrize("data", [b"{}", b"no", b""])
def test_coheres_clients_are_told_in_their_words(web_project, data):
    answer = web_project.client().post("/v2/rerank", data=data, content_type="application/json")
    assert answer.status_code >= 400
    assert answer.json["message"] == answer.json["detail"]
    assert "message" not in web_project.client().post("/api/swap", data=b"no", content_type="application/json").json


def test_every_answer_carries_the_policy(web_project):
    client = web_project.client()
    for path in ("/", "/jobs", "/nothing", "/api/models", "/healthz", "/static/style.css"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"


def test_too_large_a_body_is_refused(web_project):
    client = web_project.client()
    big = b'{"model": "' + b"x" * 70_000 + b'"}'
    assert client.post("/api/swap", data=big, content_type="application/json").status_code == 413
    assert client.post("/look", data={"x": "y" * 70_000}).status_code == 413


def test_an_error_is_a_page_for_people_and_a_problem_for_programs(web_project):
    client = web_project.client()
    page = client.get("/nothing", headers={"Accept": "text/html,*/*"})
    assert page.status_code == 404
    assert page.mimetype == "text/html"
    assert "Traceback" not in page.text
    problem = client.get("/api/nothing", headers={"Accept": "*/*"})
    assert problem.mimetype == "application/problem+json"
    assert problem.json["status"] == 404
    assert {"type", "title", "status", "detail"} <= problem.json.keys()
    wrong = client.get("/api/swap")
    assert wrong.status_code == 405
    assert "POST" in wrong.headers["Allow"]


@pytest.mark.parametrize(("method", "path"), [("POST", "/v2/rerank"), ("POST", "/metrics"), ("POST", "/openapi.json")])
def test_an_address_that_programs_call_refuses_as_a_problem(web_project, method, path):
    refused = web_project.client().open(path, method=method, headers={"Accept": "*/*"})
    assert refused.status_code in (405, 415)
    assert refused.mimetype == "application/problem+json"


def test_an_error_of_our_own_tells_no_secrets(web_project):
    app = web_project.app(TESTING=False)
    app.add_url_rule("/api/broken", view_func=lambda: 1 / 0)
    response = app.test_client().get("/api/broken")
    assert response.status_code == 500
    assert "ZeroDivision" not in response.text


def test_static_files_are_cached_by_version(web_project):
    client = web_project.client()
    page = client.get("/", headers={"Accept": "text/html"}).text
    links = re.findall(r'(?:src|href)="(/(?:static|htmx)/[^"]+)"', page)
    assert len(links) == 5
    for link in links:
        response = client.get(link)
        assert response.status_code == 200
        assert "immutable" in response.headers["Cache-Control"]
    assert "no-cache" in client.get("/static/style.css?v=old").headers["Cache-Control"]
    assert b'version:"2.' in client.get("/htmx/htmx.js").data.replace(b": ", b":")


@pytest.mark.parametrize("name", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "../../etc/passwd", "ext/hx-sse-2.js"])
def test_no_other_file_is_served(web_project, name):
    client = web_project.client()
    assert client.get(f"/static/{name}").status_code == 404
    assert client.get(f"/htmx/{name}").status_code == 404


def test_a_token_is_asked_of_everybody(web_project, tmp_path):
    file = tmp_path / "token"
    file.write_text("a-very-long-token-of-ours\n")
    file.chmod(0o600)
    client = web_project.client(TOKEN_FILE=file)
    assert client.get("/healthz").status_code == 200
    assert client.get("/api/models").status_code == 401
    assert client.get("/api/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/api/models", headers={"Authorization": "Bearer a-very-long-token-of-ours"}).status_code == 200
    page = client.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 401
    assert 'name="token"' in page.text
    assert client.post("/token", data={"token": "wrong"}).status_code == 401
    entered = client.post("/token", data={"token": "a-very-long-token-of-ours"})
    assert entered.status_code == 303
    assert "HttpOnly" in entered.headers["Set-Cookie"]
    assert "a-very-long" not in entered.headers["Set-Cookie"]
    assert client.get("/").status_code == 200


def test_a_token_that_others_can_read_is_refused(web_project, tmp_path):
    file = tmp_path / "token"
    file.write_text("a-very-long-token-of-ours")
    file.chmod(0o644)
    with pytest.raises(SystemExit, match="chmod 600"):
        web_project.app(TOKEN_FILE=file)
