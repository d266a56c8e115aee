"""Swaps that work out: by hand, twice, as a preview, over two Sparks, beside other people's containers."""

from __future__ import annotations

import itertools
import json
import threading
import urllib.request

import pytest

from tests.support import wait_for


def test_a_swap_serves_and_the_second_run_changes_nothing(cluster):
    first = cluster.swap("demo-small")
    assert first.code == 0, first.output
    assert (first.result["outcome"], first.result["changed"]) == ("serving", True)
    assert cluster.models() == ["demo-small"]
    assert cluster.chat("demo-small")
    again = cluster.swap("demo-small")
    assert again.code == 0, again.output
    assert (again.result["outcome"], again.result["changed"]) == ("unchanged", False)
    assert {host: row["changed"] for host, row in again.recap.items()} == {"spark1": 0, "spark2": 0}
    assert again.result["serving"]["since"] == first.result["serving"]["since"]


@pytest.mark.serving
def test_a_preview_is_honest_and_changes_nothing(cluster):
    before = cluster.host("spark1", "docker", "inspect", "vllm_node").stdout
    preview = cluster.swap("demo-pair", "--check", "--diff")
    assert preview.code == 0, preview.output
    assert preview.result["outcome"] == "preview"
    assert [stop["title"] for stop in preview.result["stops"]] == ["Demo: small"]
    assert preview.result["message"].startswith("Demo: small stops on spark1, then ")
    assert '-  "model": "demo-small"' in preview.output
    assert '+  "model": "demo-pair"' in preview.output
    assert cluster.host("spark1", "docker", "inspect", "vllm_node").stdout == before
    assert not (cluster.root / "spark1/home/.spark-control/lease.json").exists()
    real = cluster.swap("demo-pair", "--diff")
    assert '+  "model": "demo-pair"' in real.output
    settled = cluster.swap("demo-pair", "--check", "--diff")
    assert settled.result["outcome"] == "unchanged"
    assert "--- before" not in settled.output


def test_a_model_over_two_sparks_and_back(cluster):
    pair = cluster.swap("demo-pair")
    assert pair.code == 0, pair.output
    assert cluster.containers("spark1") == cluster.containers("spark2") == ["vllm_node"]
    assert pair.result["serving"]["nodes"] == ["spark1", "spark2"]
    assert cluster.chat(pair.result["serving"]["served_name"])
    back = cluster.swap("demo-small")
    assert back.code == 0, back.output
    assert cluster.containers("spark2") == []
    assert back.result["previous"]["nodes"] == ["spark1", "spark2"]


def test_the_old_log_is_kept_and_the_old_memory_is_back(cluster):
    free = cluster.free_gb("spark1")
    cluster.swap("demo-small")
    assert cluster.free_gb("spark1") < free - 40
    stopped = cluster.run("stop_model")
    assert stopped.code == 0, stopped.output
    assert stopped.result["message"] == "Demo: small is stopped."
    assert cluster.free_gb("spark1") == free
    logs = list((cluster.root / "spark1/home/.spark-control/logs").glob("*-demo-small.log"))
    assert "Application startup complete" in logs[0].read_text()
    assert cluster.run("stop_model").result["outcome"] == "unchanged"


@pytest.mark.serving
def test_a_server_that_died_in_a_running_container_is_started_again(cluster):
    top = cluster.host("spark1", "docker", "top", "vllm_node", "-eo", "pid,args").stdout
    pids = [line.split()[0] for line in top.splitlines()[1:] if "vllm serve" in line or "vllm" in line.split()[1:3]]
    assert pids, top
    cluster.host("spark1", "kill", "-9", *pids)
    wait_for(lambda: not cluster.models(), what="the server's end")
    assert cluster.containers("spark1") == ["vllm_node"]
    again = cluster.swap("demo-small")
    assert (again.code, again.result["outcome"]) == (0, "serving"), again.output
    assert cluster.chat("demo-small")


def test_a_container_started_by_hand_is_replaced_with_a_warning(cluster):
    cluster.host("spark2", "docker", "run", "-d", "--rm", "--name", "vllm_node", "vllm-node", "sleep", "infinity")
    swapped = cluster.swap("demo-small")
    assert swapped.code == 0, swapped.output
    assert "cannot be put back" in swapped.result["warnings"][0]
    assert cluster.containers("spark2") == []


def test_containers_of_other_names_are_left_alone(cluster):
    for name in ("vllm_node2", "my-vllm_node"):
        cluster.host("spark1", "docker", "run", "-d", "--name", name, "vllm-node", "sleep", "infinity")
    cluster.swap("demo-small")
    cluster.run("stop_model")
    assert sorted(cluster.containers("spark1")) == ["my-vllm_node", "vllm_node2"]


@pytest.mark.serving
def test_requests_in_flight_finish_before_their_model_goes(cluster):
    body = {"model": "demo-small", "stream": True, "max_tokens": 120, "messages": [{"role": "user", "content": "Tell"}]}
    request = urllib.request.Request(
        f"http://{cluster.network}.11:8888/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    answer = urllib.request.urlopen(request, timeout=30)
    answer.readline()
    heard = []
    reader = threading.Thread(target=lambda: heard.append(answer.read()))
    reader.start()
    swapped = cluster.swap("demo-pair")
    reader.join(10)
    assert swapped.code == 0, swapped.output
    assert b"data: [DONE]" in heard[0]


HOSTILE = {
    "quote": '"; rm -rf ~ #',
    "dollar": "$(id) `id` ${HOME}",
    "newline": "two\nlines",
    "braces": "{ model} {{x}} {% raw %} {{ 7 * 7 }}",
    "unicode": "naïve 模型 🦙 \u202e",
    "single": "it's '$(id)'",
}


def test_hostile_values_arrive_as_one_literal_each(cluster):
    recipe = {
        "recipe_version": "2",
        "model": "demo/second",
        "runtime": "vllm",
        "container": "vllm-node",
        "max_nodes": 1,
        "defaults": {"port": 8000, "gpu_memory_utilization": 0.5, **HOSTILE},
        "command": "vllm serve {model} --port {port} --gpu-memory-utilization {gpu_memory_utilization}"
        " --served-model-name hostile" + "".join(f" --chat-template {{{name}}}" for name in HOSTILE),
    }
    # YAML has no surrogate pairs, which is how JSON escapes what is beyond the basic plane.
    cluster.recipe("demo-hostile", json.dumps(recipe, ensure_ascii=False))
    swapped = cluster.swap("demo-hostile")
    assert swapped.code == 0, swapped.output
    argv = serving_argv(cluster)
    assert [value for flag, value in itertools.pairwise(argv) if flag == "--chat-template"] == list(HOSTILE.values())


def serving_argv(cluster) -> list[str]:
    """What the simulated vLLM of the head was called with."""
    newest = max(cluster.root.glob("spark1/docker/**/argv.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text())["argv"]


def test_a_hostile_model_name_reaches_no_path(cluster):
    for name in ("../recipes/demo-small", "/etc/passwd", "demo-small; id", "demo-small\n", "-e", "{{ 7 * 7 }}", ""):
        refused = cluster.swap(name)
        assert refused.code != 0
        assert refused.result.get("reason") == "unknown_model", refused.output
    assert cluster.containers("spark1") == []
