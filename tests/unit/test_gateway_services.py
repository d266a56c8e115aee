"""Which services there are and what each takes; and what is said of a swap."""

from __future__ import annotations

import json
import time

import pytest

from tests.support import wait_for
from tests.unit.web_project import SERVING, outcome
from webui.cluster import Host, Inventory
from webui.gateway import services
from webui.gateway.errors import Refused
from webui.gateway.relay import LONGEST_RETRY, usage


def inventory(**variables) -> Inventory:
    """One Spark with vLLM and those variables."""
    return Inventory({"a": Host("a", "127.0.0.9", frozenset({"vllm"}), variables)}, {"sparks": ("a",), "vllm": ("a",)})


def test_an_absent_group_is_no_service():
    assert services.find(inventory(), "embeddings") is None
    refused = services.absent("embeddings")
    assert (refused.status, refused.code) == (404, "service_not_configured")
    assert "group embeddings" in refused.message


def test_a_host_without_an_address_is_no_service():
    nameless = Inventory({"a": Host("a", None)}, {"vllm": ("a",)})
    assert services.find(nameless, "chat") is None


@pytest.mark.parametrize(
    ("sequences", "variables", "cap"),
    [
        (None, {}, 160),
        (16, {}, 18),
        (16, {"gateway_chat_in_flight": 5}, 5),
        (16, {"gateway_chat_in_flight": "7"}, 7),
        (16, {"gateway_chat_in_flight": "many"}, 18),
        (16, {"gateway_chat_in_flight": -1}, 18),
        (500, {"gateway_chat_ceiling": 300}, 300),
    ],
)
def test_a_chat_cap_is_what_the_model_runs_and_two_that_wait(sequences, variables, cap):
    assert services.find(inventory(**variables), "chat", sequences).cap == cap


def test_where_it_is_and_how_long_it_may_be_silent():
    found = services.find(inventory(vllm_port=8001, gateway_chat_silence_seconds=1.5), "chat")
    assert (found.url, found.where, found.silence) == ("http://127.0.0.9:8001", "vLLM on a", 1.5)
    with pytest.raises(Refused, match="no port"):
        services.find(inventory(vllm_port="x"), "chat")


def test_what_the_last_swap_knows_of_the_model_that_serves():
    swap = {"serving": SERVING, "arithmetic": [{"sequences": 16}]}
    assert services.sequences(SERVING, swap) == 16
    assert services.sequences(SERVING, {**swap, "arithmetic": [{"sequences": 1}]}) is None
    assert services.sequences({**SERVING, "digest": "sha256:2"}, swap) is None
    assert services.sequences(None, swap) is services.sequences(SERVING, None) is None


def test_during_a_swap_a_caller_is_told_when_it_is_expected_to_end_and_where_to_look(web_project):
    app = web_project.app()
    store, client = app.extensions["jobs"], app.test_client()
    app.extensions["cluster"].inventory()
    (web_project.folder / "results/swap.json").write_text(json.dumps(outcome(kind="serving")))
    job = store.start("swap", {"model": "gemma"})
    app.extensions["cluster"].facts(fresh=True)
    body = {"model": "default", "messages": []}
    response = client.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "mine"})
    error = response.json["error"]
    assert (response.status_code, error["code"], error["job_id"]) == (503, "swapping", job.id)
    assert error["job"] == f"http://localhost/jobs/{job.id}"
    assert 1 <= int(response.headers["Retry-After"]) <= LONGEST_RETRY
    assert response.headers["X-Request-Id"] == "mine"
    web_project.go.touch()
    wait_for(lambda: store.get(job.id).finished, what="the end of the swap")
    # At once, although the facts that a page is rendered from are half a second old.
    after = client.post("/v1/chat/completions", json=body).json["error"]
    assert after["code"] != "swapping"


def test_a_retry_is_no_longer_than_a_client_heeds(web_project):
    app = web_project.app()
    gateway = app.extensions["gateway"]

    class Long:
        id, operation, variables, created = "x", "swap", {}, time.time()

    gateway._expected = {"x": 600}
    assert 599 <= gateway.seconds_left(Long) <= 600
    Long.created = time.time() - 604
    assert gateway.seconds_left(Long) == 1
    Long.created = time.time() - 700  # later than any before it: who knows
    assert gateway.seconds_left(Long) == 5


@pytest.mark.parametrize(
    ("tail", "told"),
    [
        (b'..."usage":{"prompt_tokens":3,"completion_tokens":4}}\n\ndata: [DONE]\n\n', {"prompt": 3, "completion": 4}),
        (b'"usage": {"input_tokens": 3, "details": {"x": [1]}, "output_tokens": 4}}', {"prompt": 3, "completion": 4}),
        (b'{"content":"\\"usage\\":{\\"prompt_tokens\\":9}"}', {}),
        (b'"usage":{"prompt_tokens":3', {}),
        (b'"usage":null', {}),
        (b'"usage":{"prompt_tokens":true,"completion_tokens":-1}', {}),
        (b'"usage":' + b'{"a":' * 2000, {}),
        (b"", {}),
    ],
)
def test_the_tokens_that_an_answers_end_tells(tail, told):
    assert usage(tail) == told
