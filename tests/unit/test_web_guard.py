"""What every request passes: host, origin, token, size, headers, errors, static files."""

import re

import pytest

from webui.guard import host_allowed, same_origin

pytest_plugins = ["tests.unit.test_web_support"]


OURS = """localhost:9999 127.0.0.1 [::1]:9999 192.168.1.5:9999 10.0.0.1 172.20.0.1 100.101.102.103:9999 spark.local:9999
SPARK.LOCAL 169.254.3.4 [fd00::1] mine.example:9999 fe80.local."""
OTHERS = r"""evil.example evil.example:9999 8.8.8.8 127.0.0.1.evil.example localhost.evil.example notlocal a@localhost
localhost:x localhost/.. localhost\evil [::1 evil.example#.local [2606:4700::1]"""


@pytest.mark.parametrize("host", OURS.split())
def test_our_own_names_are_answered(host):
    assert host_allowed(host, {"mine.example"})


@pytest.mark.parametrize("host", ["", *OTHERS.split()])
def test_other_names_are_not(host):
    assert not host_allowed(host, {"mine.example"})


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
    ],
)
def test_only_our_own_page_may_change_something(headers, good, web_project):
    assert same_origin({"Host": "localhost", **headers}) is good
    response = web_project.client().post("/look", headers=headers)
    assert response.status_code == (303 if good else 403)


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
