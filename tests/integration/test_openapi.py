"""What /openapi.json says is so: its examples work, and schemathesis finds no request that is answered otherwise.

All of it runs against `spark-control serve` in front of the demo: playbooks, the model, the embedding server and the
store behind it are processes that really run, and nothing of it can harm anybody.
"""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import strategies as st

from tests.support import wait_for

pytestmark = [pytest.mark.xdist_group("openapi"), pytest.mark.serving]
API = schemathesis.pytest.from_fixture("api")
DOCUMENTS = [
    {"id": "cats", "text": "Cats sleep all day.", "metadata": {"year": 2025}},
    {"id": "order-77", "text": "Order ZX81-77: one blue valve.", "metadata": {"year": 2026}},
]
RELAYED = ("POST /v1/chat/completions", "POST /v1/completions", "POST /v1/responses")
RELEASE = "DELETE /api/swap/lock"
STARTS = ("POST /api/models/download", "POST /api/models/recipe", RELEASE)
# Refusals of requests that keep to the schema, because no schema can tell what is wrong with them.
SEARCH = "POST /api/collections/{name}/search"
JUDGED = {
    # The embedding server says how long a text and how many numbers a vector can be, and whether it takes token ids.
    "POST /v1/embeddings": "400",
    "POST /v1/embeddings/sparse": "400",
    "POST /v1/rerank": "400",
    "POST /v2/rerank": "400",
    "POST /api/collections": "400",
    "PUT /api/collections/{name}": "400",
    # The model says what it takes.
    **dict.fromkeys(RELAYED, "400"),
    # One of the weights is more than 0; a time is one that exists.
    SEARCH: "422",
    # An id is there once, an overlap is less than half of the size, metadata are 16 kB at most.
    "PUT /api/collections/{name}/documents": "422",
    # Ansible is given no control characters, and nothing nested deeper than six levels.
    "POST /api/models/recipe": "422",
    # The collection's name again.
    "DELETE /api/collections/{name}": "422",
    # Somebody has reserved the GPUs (the fixture).
    "POST /api/swap/lock": "423",
}
ACCEPTED = ["2xx", "404", "409"]
REFUSED = ["400", "404", "405", "409", "414", "415", "422", "423"]
CONFIG = {
    "seed": 1,
    "generation": {"deterministic": True, "max-examples": 8, "database": "none"},
    "request-timeout": 60,
    "phases": {
        "examples": {"enabled": False},  # the other test's
        "coverage": {"unexpected-methods": ["patch", "put", "delete"]},
    },
    "checks": {
        "positive_data_acceptance": {"expected-statuses": ACCEPTED},
        "negative_data_rejection": {"expected-statuses": REFUSED},
    },
    "operations": [
        # A filter holds filters: covering each level's every mistake takes four thousand requests.
        {"include-name": SEARCH, "generation": {"max-examples": 100}, "phases": {"coverage": {"enabled": False}}},
    ]
    + [
        {"include-name": name, "checks": {"positive_data_acceptance": {"expected-statuses": [*ACCEPTED, status]}}}
        for name, status in JUDGED.items()
    ]
    + [
        # The gateway judges the field `model`; all else goes on byte for byte, and a simulated model minds less.
        {"include-name": list(RELAYED), "checks": {"negative_data_rejection": {"enabled": False}}},
        # Each valid one starts a playbook, so there are only a few of those.
        {
            "include-name": list(STARTS),
            "generation": {"max-examples": 4},
            "phases": {"coverage": {"generation": {"mode": "negative"}}},
        },
    ],
}


@schemathesis.serializer("application/x-ndjson")
def lines(_context, text):
    """JSON lines as they are sent."""
    return str(text).encode()


@pytest.fixture(scope="module")
def server(shared_server):
    """A server in front of the demo: a model serves, and there are two collections, one with documents."""
    wait_for(lambda: shared_server.ask("GET", "/api/models")[1]["at"], what="the first look")
    swap = shared_server.ask("POST", "/api/swap", {"model": "demo-small"})[1]["job_id"]
    assert shared_server.ended(swap)["status"] == "successful"
    for name in ("notes", "old"):
        assert shared_server.ask("PUT", f"/api/collections/{name}", {})[0] == 201
    assert shared_server.ask("PUT", "/api/collections/notes/documents", {"documents": DOCUMENTS})[0] == 200
    yield shared_server
    for job in shared_server.ask("GET", "/api/jobs?limit=200")[1]["jobs"]:
        shared_server.ended(job["job_id"])


@pytest.fixture
def api(server, shared_cluster):
    """The document without its examples, while the GPUs are reserved: what is made up starts next to nothing."""
    job = server.ask("POST", "/api/swap/lock", {"holder": "the test", "seconds": 3600})[1]["job_id"]
    assert server.ended(job)["status"] == "successful"
    schemathesis.openapi.format("printable", st.text(st.characters(codec="ascii", exclude_categories=["Cc"])))
    document = without_examples(server.ask("GET", "/openapi.json")[1])
    config = schemathesis.Config.from_dict(CONFIG | {"base-url": server.url})
    yield schemathesis.openapi.from_dict(document, config=config)
    freed = shared_cluster.run("gpu_lease", state="absent", force=True)
    assert freed.code == 0, freed.output


def without_examples(part):
    """A part of the document with no `example` in it."""
    if isinstance(part, dict):
        return {key: without_examples(value) for key, value in part.items() if key != "example"}
    return [without_examples(item) for item in part] if isinstance(part, list) else part


@API.parametrize()
def test_every_operation_keeps_to_the_document(case):
    """Valid and invalid requests of every operation, the same ones each time: all of schemathesis' checks.

    No answer is a 500 or another 5xx; status, content type, headers and body are as declared; what breaks the schema is
    refused, what keeps to it is not (but JUDGED); 405 tells what is allowed. Playbooks are not started a hundred times:
    made-up models are not there (404), the GPUs are reserved (423), and what would start all the same is a preview.
    Valid requests below a collection go to one that is there. Checks that find nothing to look at here, because the
    demo has no token and each request stands alone: that a token is asked for, that what was deleted is gone.
    """
    operation = case.operation.label
    if case.meta.generation.mode.is_positive:
        if operation.partition(" ")[2].startswith("/api/collections/{name}/"):
            case.path_parameters["name"] = "notes"
        if operation == SEARCH:
            case.body.pop("vector", None)  # it would be of another length than the collection's
        if operation in STARTS and operation != RELEASE:
            case.body["dry_run"] = True
    if operation in RELAYED and isinstance(case.body, dict):
        case.body["max_tokens"] = 2  # the simulated model takes its time for each
    case.call_and_validate()


def test_the_examples_work(server):
    document = server.ask("GET", "/openapi.json")[1]
    schema = schemathesis.openapi.from_dict(document, config=schemathesis.Config.from_dict({"base-url": server.url}))
    there = {"job_id": server.ask("GET", "/api/jobs?operation=swap")[1]["jobs"][0]["job_id"]}
    tried = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for kind, body in bodies(operation):
                name = f"{method.upper()} {path}"
                given = {"path": {}, "query": {}}
                for parameter in operation.get("parameters", ()):
                    value = parameter.get("example", there.get(parameter["name"]))
                    if value is not None:
                        given[parameter["in"]][parameter["name"]] = value
                if len(given["path"]) < path.count("{"):
                    continue
                more = {"media_type": kind, "body": body} if kind else {}
                case = schema[path][method].Case(path_parameters=given["path"], query=given["query"], **more)
                answer = case.call(timeout=120)  # what a look at the Sparks takes, on a busy machine too
                ended = name == "POST /api/jobs/{job_id}/cancel"
                assert answer.status_code == 409 if ended else answer.status_code < 300, (name, answer.text)
                case.validate_response(answer)
                tried.add(name)
                if answer.status_code == 202 and "job_id" in answer.json():
                    job = server.ended(answer.json()["job_id"])
                    assert job["status"] == "successful" or name == RELEASE, job  # nobody has that token
    left = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods} - tried
    assert all("{key}" in name or "/v1/responses/{name}" in name for name in left), left


def bodies(operation):
    """(content type, example) of each body that an operation takes; (None, None) if it takes none."""
    content = operation.get("requestBody", {}).get("content", {})
    return [(kind, told["example"]) for kind, told in content.items()] or [(None, None)]
