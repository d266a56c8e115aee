"""Unmodified clients against the demo: the openai package, curl; through a swap; and what docs/gateway.md shows."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import subprocess
import threading
import urllib.request

import openai
import pytest

from tests.conftest import PROJECT
from tests.support import BIN, run_async, wait_for

HELLO = [{"role": "user", "content": "Hello there"}]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


pytestmark = [pytest.mark.xdist_group("gateway_chat"), pytest.mark.serving]


@pytest.fixture(scope="module")
def cluster(shared_cluster):
    """The Sparks, for all of these tests."""
    return shared_cluster


@pytest.fixture
def server(shared_server, cluster):
    """A web server that knows its cluster, and demo-small serving on it."""
    wait_for(lambda: shared_server.ask("GET", "/api/models")[1].get("models"), 120, "the first look at the cluster")
    if cluster.models() != ["demo-small"]:
        swapped = shared_server.ask("POST", "/api/swap", {"model": "demo-small"})[1]
        assert shared_server.ended(swapped["job_id"])["status"] == "successful"
    wait_for(lambda: served(shared_server) == ["demo-small", "default"], 10, "the model")
    return shared_server


def served(server) -> list[str]:
    """The first names that /v1/models tells."""
    return [model["id"] for model in server.ask("GET", "/v1/models")[1]["data"]][:2]


def client(server, **more) -> openai.OpenAI:
    """OpenAI's own client, pointed here and not otherwise changed."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", **{"max_retries": 0, **more})


def test_the_openai_package(server):
    api = client(server)
    assert [model.id for model in api.models.list()][:2] == ["demo-small", "default"]
    assert api.models.retrieve("default").root == "demo-small"

    whole = api.chat.completions.create(model="default", messages=HELLO)
    assert whole.model == "demo-small"
    assert whole.choices[0].message.content.startswith("You said: Hello there")
    assert whole.usage.completion_tokens > 0

    events = list(
        api.chat.completions.create(
            model="demo-small", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices).startswith("You said")
    assert events[-1].usage.total_tokens == whole.usage.total_tokens

    assert api.completions.create(model="default", prompt="Once upon").choices[0].text.strip() == "Once upon"
    image = "data:image/png;base64," + base64.b64encode(bytes(3_000_000)).decode()
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "What is this?"}]
    seen = api.chat.completions.create(model="default", messages=[{"role": "user", "content": parts}])
    assert "What is this?" in seen.choices[0].message.content

    with pytest.raises(openai.NotFoundError, match=r"demo-small.*default") as unknown:
        api.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        api.chat.completions.create(model="default", messages=HELLO, max_tokens=-1)
    with pytest.raises(openai.BadRequestError):
        api.chat.completions.create(model="default", messages=[])


def test_a_tool_is_called_and_its_result_answered_streamed_or_not(server):
    api = client(server)
    question = [{"role": "user", "content": "What is the weather in Paris?"}]

    def ask(messages, choice="auto", **more):
        return api.chat.completions.create(model="default", messages=messages, tools=[TOOL], tool_choice=choice, **more)

    called = ask(question).choices[0]
    assert (called.finish_reason, called.message.content) == ("tool_calls", None)
    [call] = called.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
        "function",
        "weather",
        {"city": "Paris"},
    )
    result = {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"}
    answered = ask([*question, called.message, result]).choices[0]
    assert (answered.finish_reason, answered.message.content) == ("stop", "The tool said: 12 degrees")
    assert not answered.message.tool_calls

    choices = [event.choices[0] for event in ask(question, stream=True)]
    first, *rest = [part for choice in choices for part in choice.delta.tool_calls or []]
    assert (first.index, first.type, first.function.name) == (0, "function", "weather")
    assert first.id.startswith("chatcmpl-tool-")
    assert len(rest) > 1
    assert json.loads("".join(part.function.arguments for part in rest)) == {"city": "Paris"}
    assert choices[-1].finish_reason == "tool_calls"
    called = {"id": first.id, "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages = [*question, {"role": "assistant", "tool_calls": [called]}, {**result, "tool_call_id": first.id}]
    words = [event.choices[0].delta.content or "" for event in ask(messages, stream=True)]
    assert "".join(words) == "The tool said: 12 degrees"

    named = {"type": "function", "function": {"name": "weather"}}
    for messages, choice, calls, reason in (
        (HELLO, "auto", 0, "stop"),
        (question, "none", 0, "stop"),
        (HELLO, "required", 1, "tool_calls"),
        (HELLO, named, 1, "stop"),  # so it is in vLLM, and in OpenAI's API
    ):
        found = ask(messages, choice).choices[0]
        assert (len(found.message.tool_calls or []), found.finish_reason) == (calls, reason), choice
    with pytest.raises(openai.BadRequestError, match="does not match any"):
        ask(HELLO, {"type": "function", "function": {"name": "time"}})


def test_the_responses_api_answers_streams_and_calls_a_tool(server):
    api, tool = client(server), {"type": "function", **TOOL["function"]}
    before = {kind: tokens(server, "responses", kind) for kind in ("prompt", "completion")}
    whole = api.responses.create(model="default", input="Hello")
    assert (whole.model, whole.status) == ("demo-small", "completed")
    assert whole.output_text.startswith("You said: Hello")
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens

    events = list(api.responses.create(model="default", input="Hello", stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = whole.usage.output_tokens
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * deltas,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events[4:-4]) == whole.output_text == events[-1].response.output_text
    assert events[-1].response.usage == whole.usage
    for kind, count in (("prompt", whole.usage.input_tokens), ("completion", deltas)):
        assert tokens(server, "responses", kind) == before[kind] + 2 * count

    question = {"role": "user", "content": "What is the weather in Paris?"}
    with api.responses.stream(model="default", input=[question], tools=[tool]) as stream:
        [call] = stream.get_final_response().output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Paris"})
    called = {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "12 degrees"}
    answered = api.responses.create(model="default", input=[question, called, result], tools=[tool])
    assert answered.output_text == "The tool said: 12 degrees"

    # This vLLM keeps no responses (VLLM_ENABLE_RESPONSES_API_STORE), and says so in its own words.
    for act in (api.responses.retrieve, api.responses.cancel):
        with pytest.raises(openai.NotFoundError, match=f"'{whole.id}' not found"):
            act(whole.id)
    with pytest.raises(openai.BadRequestError, match="VLLM_ENABLE_RESPONSES_API_STORE"):
        api.responses.create(model="default", input="Hello", background=True)


def tokens(server, endpoint, kind) -> float:
    """How many tokens of a kind the gateway has counted at an endpoint."""
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        told = answer.read().decode()
    labels = rf'endpoint="{endpoint}",kind="{kind}",model="demo-small"'
    found = re.search(rf"^spark_control_gateway_tokens_total\{{{labels}\}} (\S+)", told, re.M)
    return float(found[1]) if found else 0


def test_the_openai_package_asynchronously(server):
    async def both():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as api:

            async def one(number):
                asked = [{"role": "user", "content": f"number {number}"}]
                stream = await api.chat.completions.create(model="default", messages=asked, stream=True)
                return "".join([event.choices[0].delta.content or "" async for event in stream if event.choices])

            return await asyncio.gather(*(one(number) for number in range(16)))

    for number, text in enumerate(run_async(both())):
        assert text.startswith(f"You said: number {number} ")


def test_curl_sees_tokens_as_they_come_and_a_hang_up_frees_the_slot(server, cluster):
    body = json.dumps({"model": "default", "stream": True, "messages": [{"role": "user", "content": "word " * 2000}]})
    command = ["curl", "--silent", "--no-buffer", "-H", "Content-Type: application/json", "--data-binary", "@-"]
    with subprocess.Popen(
        [*command, f"{server.url}/v1/chat/completions"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as curl:
        curl.stdin.write(body.encode())
        curl.stdin.close()
        assert curl.stdout.readline().startswith(b"data: ")
        assert server.ask("GET", "/health")[1]["vllm"]["answers"] is True
        assert running(cluster) == 1
        curl.kill()
    wait_for(lambda: running(cluster) == 0, 5, "the slot's end")


def running(cluster) -> float:
    """How many requests vLLM says it works on."""
    told = subprocess.run(
        ["curl", "--silent", f"http://{cluster.head}:8888/metrics"], capture_output=True, text=True, check=True
    )
    return float(re.search(r"^vllm:num_requests_running\{.*\} (\S+)", told.stdout, re.M)[1])


def test_an_unmodified_client_waits_through_a_swap_and_goes_on(server, cluster):
    cluster.behave("demo/loads-slowly", "ok", load_seconds=6)
    retried, api = [], client(server, max_retries=10)
    accepted = server.ask("POST", "/api/swap", {"model": "demo-slow"})[1]
    _, told = wait_for(
        lambda: (
            (found := server.ask("POST", "/v1/chat/completions", {"model": "default", "messages": HELLO}))[0] == 503
            and found
        ),
        10,
        "the refusal",
    )
    assert told["error"]["code"] == "swapping"
    assert told["error"]["job_id"] == accepted["job_id"]
    assert told["error"]["job"] == f"{server.url}/jobs/{accepted['job_id']}"
    assert told["error"]["seconds_left"] >= 1

    def note(response):
        if response.status_code == 503:
            retried.append(float(response.headers["Retry-After"]))

    api._client.event_hooks["response"] = [note]
    answer = api.chat.completions.create(model="default", messages=HELLO)
    assert retried
    assert all(1 <= seconds <= 60 for seconds in retried)
    assert answer.model == cluster.models()[0] != "demo-small"
    assert server.ended(accepted["job_id"])["status"] == "successful"


def test_nothing_serves_after_a_stop_and_that_is_said(server, cluster):
    assert cluster.run("stop_model").code == 0
    wait_for(lambda: "default" not in served(server), 10, "a list without it")
    with pytest.raises(openai.InternalServerError, match="vLLM on spark1 does not answer"):
        client(server).chat.completions.create(model="default", messages=HELLO)


def test_fifty_clients_that_wait_leave_the_page_answering(server, cluster):
    body = json.dumps({"model": "default", "messages": [{"role": "user", "content": "word " * 1500}]})
    command = ["curl", "--silent", "-H", "Content-Type: application/json", "--data-binary", body]
    command += [f"{server.url}/v1/chat/completions"]
    clients = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(50)]
    try:
        wait_for(lambda: running(cluster) == 50, 20, "fifty chats")
        assert server.ask("GET", "/healthz")[0] == 200
        assert server.ask("GET", "/v1/models")[0] == 200
    finally:
        for one in clients:
            one.kill()
            one.wait()
    wait_for(lambda: running(cluster) == 0, 10, "the end of all of them")


def examples():
    """The shell and Python examples of docs/gateway.md that are meant to be run."""
    text = (PROJECT / "docs/gateway.md").read_text()
    return re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.M | re.S)


def test_the_documents_examples_do_what_they_say(server, tmp_path):
    found = examples()
    assert len(found) >= 5
    for kind, text in found:
        text = text.replace("http://spark-control.local:9999", server.url)
        command = ["bash", "-euo", "pipefail", "-c", text] if kind == "sh" else [str(BIN / "python"), "-c", text]
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
        assert done.returncode == 0, text + done.stdout + done.stderr
        assert done.stdout.strip(), text
        assert '"error"' not in done.stdout, text + done.stdout
        for line in re.findall(r"# → (.*)", text):
            assert line in done.stdout, text + done.stdout


def test_many_questions_at_once_do_not_mix(server):
    """Many threads of one client at once: each gets the answer to its own question."""
    api, answers = client(server, max_retries=5), {}

    def one(number):
        asked = [{"role": "user", "content": f"question {number}"}]
        answers[number] = api.chat.completions.create(model="default", messages=asked).choices[0].message.content

    threads = [threading.Thread(target=one, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answers[number].startswith(f"You said: question {number} ") for number in range(24))
