"""/openapi.json is valid, whole, and made from what the server goes by."""

from __future__ import annotations

import json
import re

import jsonschema_rs
import pytest
import schemathesis

from webui.api import schemas
from webui.api.openapi import METHODS, OURS, PARAMETER, option_schema
from webui.api.operations import OPERATIONS
from webui.app import create_app
from webui.gateway.search import bm25
from webui.jobs import operations


@pytest.fixture
def app(tmp_path, monkeypatch):
    """The app of this very project, on the demo's inventory."""
    monkeypatch.delenv("ANSIBLE_INVENTORY", raising=False)
    return create_app({"STATE_DIR": tmp_path, "INVENTORY": "inventory/demo", "TOKEN_FILE": None})


@pytest.fixture
def document(app):
    return app.test_client().get("/openapi.json").json


def every(document):
    """(method, path, operation) of the document."""
    return [(m.upper(), path, told) for path, methods in document["paths"].items() for m, told in methods.items()]


def body(document, method, path):
    """The schema of an operation's JSON body."""
    return document["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]


def test_the_document_is_valid_openapi_3_1(document):
    assert document["openapi"].startswith("3.1")
    schemathesis.openapi.from_dict(document).validate()
    for part in schemas.COMPONENTS.values():
        jsonschema_rs.meta.validate(part)


def test_every_address_and_method_is_in_it_and_nothing_else(app, document):
    ours = [rule for rule in app.url_map.iter_rules() if rule.rule.startswith(OURS)]
    served = {(m, PARAMETER.sub(r"{\1}", rule.rule)) for rule in ours for m in rule.methods & set(METHODS)}
    assert {(method, path) for method, path, _ in every(document)} == served
    assert {rule.endpoint for rule in ours} == set(OPERATIONS)


def test_what_is_left_out_are_pages(app, document):
    left = {rule.rule for rule in app.url_map.iter_rules() if not rule.rule.startswith(OURS)}
    assert not [rule for rule in left if re.match(r"/(v\d|api|health|metrics)", rule)]


def test_every_operation_has_a_summary_an_id_of_its_own_and_answers(document):
    told = every(document)
    assert len({operation["operationId"] for _, _, operation in told}) == len(told)
    for method, path, operation in told:
        assert operation["summary"], (method, path)
        assert not re.match(r"[\d{?]", operation["summary"]), "a summary is a sentence"
        assert any(status.startswith("2") for status in operation["responses"])
        assert "403" in operation["responses"]
        assert {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"} == set(
            re.findall(r"\{(\w+)\}", path)
        )


def test_every_reference_leads_somewhere(document):
    for target in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)):
        part = document
        for step in target.split("/"):
            part = part[step]


def test_what_starts_a_playbook_takes_what_its_role_says(document):
    options = operations()["copy_weights"].options
    found = body(document, "post", "/api/models/copy")
    assert found["required"] == ["repo"]
    assert found["properties"]["repo"]["description"] == options["repo"]["description"]
    verify = found["properties"]["verify"]["anyOf"][0]
    assert (verify["enum"], verify["default"]) == (options["verify"]["choices"], options["verify"]["default"])
    assert found["properties"]["to"]["anyOf"][0]["items"] == {"type": "string", "enum": ["spark1", "spark2"]}
    force = operations()["swap"].options["force"]
    assert body(document, "post", "/api/swap")["properties"]["force"] == {
        "type": "boolean",
        "default": force["default"],
        "description": force["description"],
    }
    assert "dry_run" not in options
    assert found["properties"]["dry_run"]["type"] == "boolean"


def test_an_option_without_a_choice_or_with_a_secret():
    option = operations()["copy_ssh_key"].options["ssh_key_password"]
    assert option_schema(option) == {"type": "string", "writeOnly": True, "description": option["description"]}


def test_errors_have_the_shape_of_their_address(document):
    refusals = document["components"]["responses"]
    for _, path, operation in every(document):
        kinds = {
            told["$ref"].rsplit("/", 1)[-1].rstrip("0123456789X")
            for told in operation["responses"].values()
            if "$ref" in told
        }
        assert kinds == {"Error" if path.startswith("/v1/") else "Problem"}, path
    for status in ("423", "429", "503"):
        assert "Retry-After" in refusals[f"Problem{status}"]["headers"]


def test_a_token_is_declared_where_one_is_set(web_project, tmp_path):
    file = tmp_path / "token"
    file.write_text("a-very-long-token-of-ours\n")
    file.chmod(0o600)
    given = {"Authorization": "Bearer a-very-long-token-of-ours"}
    client = web_project.client(TOKEN_FILE=file)
    assert client.get("/openapi.json").status_code == 401
    locked, free = client.get("/openapi.json", headers=given).json, web_project.client().get("/openapi.json").json
    assert locked["security"] == [{"token": []}]
    assert "401" in locked["paths"]["/api/models"]["get"]["responses"]
    assert locked["paths"]["/healthz"]["get"]["security"] == []
    assert "security" not in free
    assert "401" not in free["paths"]["/api/models"]["get"]["responses"]


def test_every_example_keeps_to_its_schema(document):
    for method, path, operation in every(document):
        for told in operation.get("requestBody", {}).get("content", {}).values():
            schema = told["schema"] | {"components": document["components"]}
            jsonschema_rs.validator_for(schema).validate(told["example"]), (method, path)
        for parameter in operation.get("parameters", ()):
            if "example" in parameter:
                jsonschema_rs.validator_for(parameter["schema"]).validate(parameter["example"])


def test_every_language_that_is_told_is_one_of_bm25():
    for language in schemas.SETTINGS["language"]["enum"]:
        assert bm25(language)


def test_the_document_is_not_kept_by_a_browser(app):
    assert app.test_client().get("/openapi.json").headers["Cache-Control"] == "no-store"
