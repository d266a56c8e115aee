"""From a recipe to a plan: how many Sparks, whose port, words or a script, and what the memory block says."""

# A table of cases reads better with a case a line.
# ruff: noqa: E501

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.spark.control.plugins.module_utils import spark_recipe
from ansible_collections.spark.control.plugins.module_utils.spark_recipe import RecipeError

NODES = [{"host": f"spark{n}", "address": f"10.0.0.{n}"} for n in range(1, 10)]
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def plan(tmp_path):
    def plan(nodes=1, port=8888, overrides=None, name="toy", **fields):
        base = {"recipe_version": "2", "name": "Toy", "model": "org/toy", "container": "vllm-node"}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(base | fields, sort_keys=False))
        recipe = spark_recipe.load(tmp_path / f"{name}.yaml")
        return spark_recipe.render(recipe, NODES[:nodes], port, overrides=overrides)

    return plan


SIZES = "vllm serve {model} -tp {tensor_parallel} --port {port}"


@pytest.mark.parametrize(
    ("fields", "nodes", "expected"),
    [
        # v1: a default of 2 means one or two Sparks, more means itself
        ({"recipe_version": "1", "defaults": {"tensor_parallel": 2}}, 1, 1),
        ({"recipe_version": "1", "defaults": {"tensor_parallel": 2}}, 2, 2),
        ({"recipe_version": "1", "defaults": {"tensor_parallel": 2}}, 4, 2),
        ({"recipe_version": "1", "defaults": {"tensor_parallel": 2}, "solo_only": True}, 2, 1),
        ({"recipe_version": "1", "defaults": {"tensor_parallel": 2}, "cluster_only": True}, 1, "needs 2 Sparks; this cluster has 1."),
        ({"recipe_version": "1", "defaults": {"tensor_parallel": 4}}, 2, "needs 4 Sparks; this cluster has 2."),
        ({"recipe_version": "1", "defaults": {"tensor_parallel": 1}}, 2, 1),
        ({"defaults": {"tensor_parallel": 1}}, 3, 1),
        ({"defaults": {"tensor_parallel": 2}, "min_nodes": 2}, 1, "needs 2 Sparks; this cluster has 1."),
        ({"defaults": {"tensor_parallel": 2}, "min_nodes": 2}, 0, "needs 2 Sparks; this cluster has none."),
        ({"defaults": {"tensor_parallel": 1}}, 0, "needs 1 Spark; this cluster has none."),
        ({"defaults": {"tensor_parallel": 2, "pipeline_parallel": 3}, "command": SIZES + " -pp {pipeline_parallel}"}, 6, 6),
        ({"defaults": {"tensor_parallel": 1, "pipeline_parallel": 3}, "command": SIZES + " -pp {pipeline_parallel}", "min_nodes": 3}, 3, 3),
        ({"defaults": {"tensor_parallel": 4}, "max_nodes": 1}, 4, 1),
        ({"defaults": {"tensor_parallel": 2}, "mode": "solo"}, 4, 1),
        ({"defaults": {"tensor_parallel": 2}, "mode": "cluster"}, 4, 2),
        ({"command": "vllm serve m --tensor-parallel-size=2"}, 1, "needs 2 Sparks; this cluster has 1."),
        ({"command": "vllm serve m --tensor-parallel-size=2 --data-parallel-size 2"}, 4, 4),
    ],
)  # fmt: skip
def test_the_number_of_sparks(plan, fields, nodes, expected):
    fields = {"command": SIZES} | fields
    if isinstance(expected, str):
        with pytest.raises(RecipeError) as caught:
            plan(nodes, **fields)
        assert caught.value.reason == "too_few_sparks"
        assert str(caught.value) == f"Toy {expected}"
    else:
        made = plan(nodes, **fields)
        assert [node["host"] for node in made["nodes"]] == [f"spark{n}" for n in range(1, expected + 1)]
        assert made["mode"] == ("solo" if expected == 1 else "cluster")
        if expected == 1:
            assert made["tensor_parallel"] == 1
            assert made["argv"][made["argv"].index("-tp") + 1] == "1"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_nodes": 2}, "defaults.tensor_parallel: expected a product of the parallel sizes of at least 2"),
        ({"max_nodes": 2, "defaults": {"tensor_parallel": 4}}, "max_nodes: expected at least 4"),
        ({"solo_only": True, "command": "vllm serve m -tp 2"}, "command: expected one Spark as max_nodes"),
        ({"min_nodes": 2, "command": "vllm serve m -tp 2 --nnodes 2"}, "command: --nnodes: expected nothing"),
        ({"min_nodes": 2, "command": "vllm serve m -tp 2 --port {port} | tee log"}, "expected to end with its `vllm serve`"),
        ({"min_nodes": 2, "command": "vllm serve m -tp 2 --port {port} # x"}, None),
        ({"min_nodes": 2, "command": "echo -tp 8\nvllm serve m --port {port} -tp 2 $X"}, None),
        ({"min_nodes": 2, "command": "vllm serve m --port {port} -tp 2 $X\necho -tp 8"}, "expected to end with"),
        ({"min_nodes": 2, "command": "vllm serve m -tp 2 --x '-tp\n4 '"}, None),
        ({"min_nodes": 2, "command": "vllm serve m -tp 2 $X --x 'a -tp 4 b'"}, "the launcher would read 4"),
        ({"min_nodes": 2, "command": "vllm serve m -tp 2 $X '--distributed-executor-backend ray'"}, "as a flag of its own"),
        ({"command": "vllm serve m --port 9999 $X"}, "command: --port: expected {port}, got 9999; models are served on 8888"),
        ({"command": "vllm serve m --port $PORT"}, "command: --port: expected {port}, got a value that only the shell"),
        ({"command": "vllm serve m --host 127.0.0.1 && true"}, "command: --host: expected {host}, got 127.0.0.1"),
        ({"command": "if true; then vllm serve m; fi"}, "command: expected `--port {port}` in its `vllm serve`"),
        ({"command": "vllm serve m --port"}, "command: --port: expected a value after it"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_true_is_refused_by_name(plan, fields, message):
    fields = {"command": SIZES} | fields
    if message is None:
        assert plan(4, **fields)["mode"] == "cluster"
        return
    with pytest.raises(RecipeError) as caught:
        plan(4, **fields)
    assert message in str(caught.value)
    assert caught.value.reason == "broken_recipe"


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ("vllm serve m --port {port}", "vllm serve m --port 8888"),
        ("vllm serve m", "vllm serve m --port 8888"),
        ("vllm serve m --port 9999", "vllm serve m --port 8888"),
        ("vllm serve m --port=9999 --host=127.0.0.1", "vllm serve m --port=8888 --host=0.0.0.0"),
        ("vllm serve m --host {host} -p {port}", "vllm serve m --host 0.0.0.0 -p 8888 --port 8888"),
        ("vllm serve m --distributed-executor-backend ray --port {port}", "vllm serve m --port 8888"),
        ("vllm serve m --port {port} \\\n  --distributed-executor-backend=mp \\\n", "vllm serve m --port 8888"),
        ("# start\nvllm serve m \\ \n --port {port} # done", "vllm serve m --port 8888"),
        ("/opt/bin/vllm serve m --port {port}", "/opt/bin/vllm serve m --port 8888"),
        ("python3 -m vllm.entrypoints.openai.api_server --model m", None),
    ],
)
def test_the_house_port_is_in_every_command(plan, command, argv):
    made = plan(command=command)
    assert made["script"] is None
    if argv:
        assert " ".join(made["argv"]) == argv
    assert "8888" in " ".join(made["argv"])
    assert made["port"] == 8888
    assert made["served_name"] == "m"


@pytest.mark.parametrize(
    "command",
    [
        "export A=1\nvllm serve m --port {port}",
        "A=1 vllm serve m --port {port}",
        "cd /w && vllm serve m --port {port}",
        "vllm serve m --port {port} --x $HOME",
        "vllm serve m --port {port} --x *.json",
        "vllm serve m --port {port} --x {1,2}",
        "vllm serve ~/m --port {port}",
        "vllm serve m --port {port} > /tmp/log",
        "exec vllm serve m --port {port}",
        "vllm serve m --port {port} | tee log",
        "vllm serve $(cat name) --port {port}",
        'vllm serve m --port {port} --x "$X"',
    ],
)
def test_shell_text_travels_as_the_author_wrote_it(plan, command):
    made = plan(command=command)
    assert made["argv"] is None
    assert made["script"] == "#!/bin/bash\n" + command.replace("{port}", "8888") + "\n"


def test_a_script_gets_the_port_at_its_end(plan):
    assert plan(command="export A=1\nvllm serve m")["script"].endswith("\nvllm serve m --port 8888\n")


def test_an_environment_that_needs_quoting_makes_a_script(plan):
    command = "vllm serve m --port {port}"
    assert plan(command=command, env={"A": "x:1", "B": 2, "C": True})["env"] == {"A": "x:1", "B": "2", "C": "True"}
    made = plan(command=command, env={"A": "it's {a}", "B": 2})
    assert made["script"] == "#!/bin/bash\nexport A='it'\\''s {a}'\nexport B=2\nvllm serve m --port 8888\n"


def test_v1_drops_blank_lines_and_undoubles_braces(plan):
    command = 'vllm serve m \\\n\n  \\\n --x \'{{"a": {n}, "b": {{}}}}\' \\\n --port {port} \\\n'
    made = plan(recipe_version="1", command=command, defaults={"n": 3})
    assert made["argv"] == ["vllm", "serve", "m", "--x", '{"a": 3, "b": {}}', "--port", "8888"]


def test_v2_keeps_braces_and_follows_nested_placeholders(plan):
    made = plan(
        command='vllm serve {model} --x \'{"a": {"b": 1}}\' --url {url} --v ${HOME} --port {port}',
        defaults={"url": "http://{host}:{port}/{path}", "path": "v1"},
    )
    assert "http://0.0.0.0:8888/v1" in made["script"]
    assert '\'{"a": {"b": 1}}\'' in made["script"]
    assert "${HOME}" in made["script"]


def test_an_override_inside_another_default_is_no_template(plan):
    fields = {"command": "vllm serve m --x {a} --y {b} --port {port}", "defaults": {"a": "<{b}>", "b": "1"}}
    argv = plan(**fields, overrides={"b": "{port} {a}"})["argv"]
    assert argv == ["vllm", "serve", "m", "--x", "<{port} {a}>", "--y", "{port} {a}", "--port", "8888"]


def test_v2_doubled_braces_around_json_are_read_as_v1_does(plan):
    made = plan(command='vllm serve m --port {port} --x \'{{"n":{n},"m":{{"k":1}}}}\'', defaults={"n": 5})
    assert made["argv"][-1] == '{"n":5,"m":{"k":1}}'
    assert "doubled braces" in made["warnings"][0]


def test_v2_without_a_command_is_built_from_its_defaults(plan):
    made = plan(
        defaults={
            "served_model_name": "toy other", "port": 1, "tensor_parallel": 1, "trust_remote_code": True,
            "enforce_eager": False, "hf_overrides": '{"a": 1}', "unheard_of": 3,
        }
    )  # fmt: skip
    assert made["argv"] == [
        "vllm", "serve", "org/toy", "--served-model-name", "toy", "other", "--port", "8888", "-tp", "1",
        "--hf-overrides", '{"a": 1}', "--trust-remote-code",
    ]  # fmt: skip
    assert made["served_name"] == "toy"
    assert "unheard_of" in made["warnings"][0]


def test_v2_names_the_model_even_where_the_command_forgets_to(plan):
    made = plan(command="vllm serve {model}", defaults={"served_model_name": "toy"})
    assert made["argv"][-4:] == ["--port", "8888", "--served-model-name", "toy"]


@pytest.mark.parametrize(
    "overrides", [{"port": 1}, {"host": "x"}, {"nope": 1}, {"a": [1]}, {"a": None}, {"command": "x"}]
)
def test_an_override_of_something_else_is_refused_by_name(plan, overrides):
    with pytest.raises(RecipeError, match=f"{next(iter(overrides))}: expected"):
        plan(command="vllm serve m --x {a}", defaults={"a": 1}, overrides=overrides)


def test_the_digest_changes_with_the_launch_and_with_nothing_else(plan):
    fields = {"command": SIZES, "defaults": {"tensor_parallel": 2}, "recipe_version": "1"}
    same = plan(2, **fields)["digest"]
    assert re.fullmatch("sha256:[0-9a-f]{64}", same)
    assert plan(2, **fields, description="other", metadata={"vision": True}, name="copy")["digest"] == same
    others = [
        plan(1, **fields), plan(2, 8889, **fields), plan(2, **fields, env={"A": 1}), plan(2, **fields, mods=["mods/x"]),
        plan(2, **fields | {"container": "other"}), plan(2, **fields | {"command": SIZES + " --x"}),
    ]  # fmt: skip
    assert len({same, *(other["digest"] for other in others)}) == 7


def test_the_memory_block(plan):
    made = plan(
        command="vllm serve m --gpu-memory-utilization 0.8 --max-model-len 32k --max_num_seqs=4 --kv-cache-dtype fp8",
        metadata={"model_params": "35B", "model_dtype": "fp8", "num_layers": 10, "num_kv_heads": 2, "head_dim": 128},
    )
    assert made["memory"] == {
        "gpu_memory_utilization": 0.8, "gpu_memory_gb": None, "max_model_len": 32000, "max_num_seqs": 4,
        "weights_bytes": 35_000_000_000, "kv_bytes_per_token": 5120, "kv_verified": False,
        "context_auto": False, "kv_cache_dtype": "fp8", "draft_model": None,
    }  # fmt: skip
    made = plan(
        command="vllm serve m --gpu-memory-utilization-gb 108 --max-model-len auto",
        metadata={"model_vram": 16.5, "kv_vram_per_token": 0.0001},
    )
    assert made["memory"]["gpu_memory_gb"] == 108
    assert made["memory"]["max_model_len"] is None
    assert made["memory"]["weights_bytes"] == round(16.5 * 2**30)
    assert made["memory"]["kv_verified"] is True


def test_the_shipped_recipes_plan_as_their_names_say():
    found = {entry["name"]: entry for entry in spark_recipe.listing([PROJECT / "recipes"], NODES)}
    assert {name: entry["error"] for name, entry in found.items()} == dict.fromkeys(found)
    assert {name: entry["max_nodes"] for name, entry in found.items()} == {
        "qwen3.6-35b-a3b": 1, "gemma-4-26b-a4b": 1, "minimax-m2.5": 2, "qwen3.5-397b": 4,
    }  # fmt: skip
    recipe = spark_recipe.load(PROJECT / "recipes" / "gemma-4-26b-a4b.yaml")
    made = spark_recipe.render(recipe, NODES, 8888)
    assert made["vision"] is True
    assert made["argv"][made["argv"].index("--moe-backend") + 1] == "marlin"
    assert json.loads(made["argv"][made["argv"].index("--limit-mm-per-prompt") + 1]) == {"image": 4}


def play(tmp_path, *tasks):
    """The results of recipe_plan tasks, run by ansible-playbook itself."""
    steps = []
    for task in tasks:
        steps.append({"spark.control.recipe_plan": task, "register": "got", "ignore_errors": True})
        steps.append({"ansible.builtin.debug": {"msg": "@@{{ got | to_json }}@@"}})
    book = [{"hosts": "localhost", "gather_facts": False, "tasks": steps}]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(book))
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", str(tmp_path / "play.yml")],
        env={
            "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8",
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal",
        },
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    texts = re.findall(r'"msg": "@@(.*)@@"', done.stdout)
    assert len(texts) == len(tasks), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return [json.loads(json.loads(f'"{text}"')) for text in texts]


def test_the_task_plans_lists_and_fails_with_a_reason(tmp_path):
    folder = tmp_path / "recipes"
    folder.mkdir()
    hostile = "{{ 1 + 1 }} {% raw %} $(id)"
    fields = {
        "model": "org/toy",
        "runtime": "vllm",
        "command": "vllm serve {model} --x '{a}'",
        "defaults": {"a": hostile},
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(fields))
    (folder / "two.yaml").write_text(
        yaml.safe_dump({"model": "o/t", "min_nodes": 2, "defaults": {"tensor_parallel": 2}})
    )
    (folder / "bad.yaml").write_text("name: [")
    dirs = {"recipe_dirs": [str(folder)]}
    toy, listed, unknown, broken, few, evil, empty = play(
        tmp_path,
        dirs | {"model": "toy", "nodes": NODES[:2]},
        dirs,
        dirs | {"model": "toi"},
        dirs | {"model": "bad"},
        dirs | {"model": "two", "nodes": NODES[:1]},
        dirs | {"model": "../../etc/passwd"},
        dirs | {"model": ""},
    )
    assert toy["plan"]["argv"][4] == hostile
    assert toy["changed"] is False
    assert "recipes" not in toy
    assert [entry["name"] for entry in listed["recipes"]] == ["bad", "toy", "two"]
    assert [entry["error"] is None for entry in listed["recipes"]] == [False, True, True]
    assert empty["reason"] == "unknown_model"
    assert (unknown["failed"], unknown["reason"]) == (True, "unknown_model")
    assert "toy" in unknown["msg"]
    assert broken["reason"] == "broken_recipe"
    assert broken["msg"].startswith("recipes/bad.yaml: expected YAML")
    assert few["reason"] == "too_few_sparks"
    assert few["msg"] == "two needs 2 Sparks; this cluster has 1."
    assert evil["reason"] == "unknown_model"
