"""A suggested recipe is saved and served, a local model is mounted, and what cannot fit is refused by its cache."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from ansible_collections.spark.control.plugins.module_utils import spark_infer

from tests.support import BIN

GIB = 2**30


def suggested(name="demo/second", kind="cache", **other):
    """A suggestion for one of the simulated models."""
    facts = {
        "architecture": "LlamaForCausalLM", "model_type": "llama", "layers": 16, "kv_heads": 8, "head_dim": 64,
        "context": 32768, "chat_template": True, "tool_markers": ["<tool_call>"], "vision": True, **other,
    }  # fmt: skip
    entry = {
        "name": name, "repo": name if kind == "cache" else None, "kind": kind, "state": "complete",
        "weights_bytes": 4 * 10**9,
        "facts": {key: {"value": value, "file": "config.json", "key": key} for key, value in facts.items()},
    }  # fmt: skip
    sparks = [{"host": f"spark{n}", "total": 121 * GIB, "available": 116 * GIB, "held": 0} for n in (1, 2)]
    made = spark_infer.suggest(entry, sparks)
    assert made["recipe"], made
    return made


def test_a_suggestion_is_previewed_saved_and_served(cluster):
    made = suggested()
    saved = cluster.root / "recipes/second.yaml"
    preview = cluster.run("save_recipe", "--check", "--diff", model=made["name"], recipe=made["recipe"])
    assert preview.code == 0, preview.output
    assert "+# Inferred by Spark Control on 20" in preview.output
    assert "+  vllm serve demo/second \\" in preview.output
    assert not saved.exists()
    done = cluster.run("save_recipe", model=made["name"], recipe=made["recipe"])
    assert (done.code, done.result["changed"]) == (0, True), done.output
    assert saved.read_text().split("\n", 1)[1] == made["text"]
    again = cluster.run("save_recipe", model=made["name"], recipe=made["recipe"])
    assert (again.result["changed"], sum(row["changed"] for row in again.recap.values())) == (False, 0)
    swapped = cluster.swap("second")
    assert swapped.code == 0, swapped.output
    assert cluster.models() == ["second"]


def test_a_recipe_is_saved_by_the_command_line_and_never_over_a_persons(cluster):
    made = suggested()
    words = ["run", "save_recipe", "-e", f"model={made['name']}", "-e", "recipe=" + json.dumps(made["recipe"])]
    command = [BIN / "spark-control", *words]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    saved = cluster.root / "recipes/second.yaml"
    saved.write_text(saved.read_text() + "# mine\n")
    before = sorted((path.name, path.read_bytes()) for path in saved.parent.iterdir())
    refused = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "was changed by a person since, and is left as it is" in refused.stdout + refused.stderr
    odd = cluster.run("save_recipe", model="../x", recipe=made["recipe"] | {"container": "; id"})
    assert odd.code != 0
    assert odd.result["problems"][0]["field"] == "model"
    assert sorted((path.name, path.read_bytes()) for path in saved.parent.iterdir()) == before


def test_a_templates_braces_in_a_recipe_are_never_run(cluster):
    made = suggested()
    hostile = made["recipe"] | {"name": "{{ lookup('pipe', 'id') }}", "description": "{% raw %} {{ 7 * 7 }}"}
    words = ["run", "save_recipe", "-e", "model=second", "-e", "recipe=" + json.dumps(hostile)]
    command = [BIN / "spark-control", *words]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (cluster.root / "recipes/second.yaml").read_text()
    assert "{{ lookup('pipe', 'id') }}" in text.replace("''", "'")
    assert "uid=" not in text
    swapped = cluster.swap("second")
    assert swapped.result["title"] == "{{ lookup('pipe', 'id') }}", swapped.output


def test_a_local_model_is_mounted_read_only_from_its_own_folder(cluster):
    home = cluster.root / "spark1/home"
    snapshot = next((home / ".cache/huggingface/hub/models--demo--second/snapshots").iterdir())
    folder = home / "models/my-tune"
    shutil.copytree(snapshot, folder)
    made = suggested(str(folder), kind="local")
    assert cluster.run("save_recipe", model="my-tune", recipe=made["recipe"]).code == 0
    outside = cluster.swap("my-tune", local_model_dirs=[str(home / "elsewhere")])
    assert outside.code != 0
    assert "is in no folder of local models" in outside.result["message"]
    link = home / "models/link"
    link.symlink_to(home)
    assert cluster.run("save_recipe", model="link", recipe=suggested(str(link), kind="local")["recipe"]).code == 0
    assert cluster.swap("link", local_model_dirs=[str(home / "models")]).code != 0
    swapped = cluster.swap("my-tune", local_model_dirs=[str(home / "models")])
    assert swapped.code == 0, swapped.output
    assert cluster.models() == ["my-tune"]
    looked = json.loads(cluster.host("spark1", "docker", "inspect", "vllm_node").stdout)
    assert f"{folder}:{folder}:ro" in looked[0]["HostConfig"]["Binds"]


LONG = """recipe_version: "2"
model: demo/second
runtime: vllm
container: vllm-node
max_nodes: 1
metadata: {{kv_vram_per_token: 0.001}}
defaults: {{port: 8000, gpu_memory_utilization: 0.5, max_model_len: {length}, served_model_name: long}}
"""


@pytest.mark.serving
def test_a_swap_whose_context_cannot_fit_is_refused_before_anything_stops(cluster):
    cluster.recipe("long", LONG.format(length=131072))
    refused = cluster.swap("long")
    assert refused.code != 0
    assert (refused.result["outcome"], refused.result["reason"]) == ("refused", "memory"), refused.output
    assert "one request of 131,072 tokens 131 GB" in refused.result["message"]
    assert "tokens would fit" in refused.result["message"]
    assert cluster.models() == ["demo-small"]
    cluster.recipe("long", LONG.format(length=32768))
    assert cluster.swap("long", "--check").result["outcome"] == "preview"


@pytest.mark.parametrize("more", [0, 3])
def test_the_second_swap_says_what_the_first_one_took(cluster, more):
    first = cluster.swap("demo-small")
    assert first.code == 0, first.output
    assert first.result["arithmetic"][0]["measured"] is None
    file = cluster.root / "spark1/home/.spark-control/measured.json"
    kept = json.loads(file.read_text())
    assert list(kept["models"]) == ["demo/second"]
    row = kept["launches"][first.result["serving"]["digest"]]
    assert abs(row["measured"] - row["estimate"]) < GIB
    row["measured"] = row["estimate"] + more * GIB
    file.write_text(json.dumps(kept))
    second = cluster.swap("demo-small", "--check")
    assert second.code == 0, second.output
    told = second.result["arithmetic"][0]["notes"][-1]
    assert told == ("Last time it took 61 GB, as this estimate says." if not more else
                    "Last time it took 64 GB, 3.0 GB more than this estimate.")  # fmt: skip
