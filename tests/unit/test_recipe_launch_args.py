"""The launcher's call for a plan, for both launchers, and that what the launcher edits still runs."""

# A table of cases reads better with a case a line.
# ruff: noqa: E501

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.spark.control.plugins.module_utils import spark_launch_args, spark_launcher, spark_recipe
from ansible_collections.spark.control.plugins.module_utils.spark_launcher import SHAPES, CannotCarry, shape_of

SEPTEMBER, JANUARY = SHAPES["september"], SHAPES["january"]
NODES = [{"host": f"spark{n}", "address": f"10.0.0.{n}"} for n in (1, 2)]
PLAN = {
    "image": "vllm-node", "container": "vllm_node", "mode": "solo", "nodes": NODES[:1], "env": {}, "mods": [],
    "argv": ["vllm", "serve", "m", "--x", "a b"], "script": None,
}  # fmt: skip
SCRIPT = {"argv": None, "script": "#!/bin/bash\nexport A='x y'\nvllm serve m\n", "env": {"A": "x y", "B": "1"}}
CLUSTER = {"mode": "cluster", "nodes": NODES}
LABEL = ["--label", "spark-control.digest=sha256:ab"]


@pytest.mark.parametrize(
    ("change", "launcher", "argv", "extra", "script"),
    [
        ({}, SEPTEMBER, "-t vllm-node --name vllm_node --solo -d exec vllm serve m --x|a b", "", None),
        ({}, JANUARY, "-t vllm-node --name vllm_node -n 10.0.0.1 exec|vllm serve m --x 'a b'", "", None),
        (CLUSTER, SEPTEMBER, "-t vllm-node --name vllm_node -n 10.0.0.1,10.0.0.2 -d exec vllm serve m --x|a b", "", None),
        (
            CLUSTER, JANUARY,
            "-t vllm-node --name vllm_node -n 10.0.0.1,10.0.0.2 exec"
            "|vllm serve m --x 'a b' --distributed-executor-backend ray", "", None,
        ),
        (
            {"env": {"A": "1"}, "mods": ["mods/x", "mods/y.zip"]}, SEPTEMBER,
            "-t vllm-node --name vllm_node --solo --apply-mod mods/x --apply-mod mods/y.zip -e A=1 -d exec vllm serve m"
            " --x|a b", "", None,
        ),
        ({"env": {"A": "1"}}, JANUARY, "-t vllm-node --name vllm_node -n 10.0.0.1 exec|vllm serve m --x 'a b'", "-e A=1", None),
        (SCRIPT, SEPTEMBER, "-t vllm-node --name vllm_node --solo -e B=1 -d --launch-script /x.sh", "", SCRIPT["script"]),
        (
            SCRIPT, JANUARY,
            "-t vllm-node --name vllm_node -n 10.0.0.1 exec|"
            "bash -c '#!/bin/bash'$'\\n''export A='\\''x y'\\'''$'\\n''vllm serve m'$'\\n'''", "-e B=1", None,
        ),
    ],
)  # fmt: skip
def test_the_call(change, launcher, argv, extra, script):
    call = launcher.call(PLAN | change, docker_args=LABEL, script_path="/x.sh")
    head, _, last = argv.partition("|")
    assert call.argv == [*head.split(), *([last] if last else [])]
    assert call.environment == {"VLLM_SPARK_EXTRA_DOCKER_ARGS": " ".join([*extra.split(), *LABEL])}
    assert call.script == script
    assert call.detached is (launcher is SEPTEMBER)


def test_an_older_cluster_script_tells_vllm_that_it_is_ray():
    call = JANUARY.call(PLAN | SCRIPT | CLUSTER)
    assert "vllm serve m --distributed-executor-backend ray" in call.argv[-1]


def test_the_owners_docker_arguments_are_kept():
    own = {"VLLM_SPARK_EXTRA_DOCKER_ARGS": "-v /a b:/c"}
    call = SEPTEMBER.call(PLAN, docker_args=LABEL, environment=own)
    assert call.environment == {"VLLM_SPARK_EXTRA_DOCKER_ARGS": "-v /a b:/c " + " ".join(LABEL)}
    assert SEPTEMBER.call(PLAN, environment=own).environment == {}


@pytest.mark.parametrize(
    ("change", "kwargs", "message"),
    [
        ({"image": "a;id"}, {}, "image"),
        ({"image": "-it"}, {}, "image"),
        ({"nodes": [{"host": "a", "address": "10.0.0.1;id"}]}, {}, "node address"),
        ({"mods": ["../x"]}, {}, "mod"),
        ({"mods": ["-x"]}, {}, "mod"),
        ({"env": {"A": "x y"}}, {}, "env A: its value needs a script"),
        ({"env": {"A B": "x"}}, {}, "environment name"),
        ({"argv": ["vllm", "a\0b"]}, {}, "NUL"),
        ({"argv": None}, {}, "exactly one"),
        ({"script": "x"}, {}, "exactly one"),
        ({}, {"container": "a b"}, "container name"),
        ({}, {"docker_args": ["--label", "title=Gemma 4"]}, "docker argument 'title=Gemma 4'"),
        ({}, {"docker_args": ["a\nb"]}, "docker argument"),
        ({}, {"docker_args": [""]}, "docker argument"),
    ],
)
def test_what_the_launcher_cannot_carry_is_refused_by_name(change, kwargs, message):
    for launcher in SHAPES.values():
        with pytest.raises(CannotCarry, match=message):
            launcher.call(PLAN | change, **kwargs)


@pytest.mark.parametrize(
    ("image", "right"),
    [
        ("vllm-node", True), ("vllm-node:v1", True), ("ghcr.io/a/b-c_d:latest", True), ("localhost:5000/x", True),
        ("vllm/vllm-openai:v0.27.1-aarch64", True), ("a@sha256:" + "0" * 64, True), ("Upper", False), ("a b", False),
        ("a:b:c", False), ("a/", False), ("/a", False), ("a:", False), ("a@sha256:0", False), ("a\n", False), ("", False),
    ],
)  # fmt: skip
def test_an_image_is_a_docker_reference(image, right):
    assert bool(spark_launch_args.IMAGE.fullmatch(image)) is right


@pytest.mark.parametrize("module", [spark_launch_args, spark_launcher])
def test_it_needs_nothing_that_a_spark_may_lack(module):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    names = {a.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {
        node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) if not node.level
    }
    assert names <= sys.stdlib_module_names


def test_octobers_launcher_is_called_as_septembers_is():
    for change in ({}, SCRIPT, CLUSTER, SCRIPT | CLUSTER):
        calls = [SHAPES[shape].call(PLAN | change, docker_args=LABEL) for shape in ("september", "october")]
        assert calls[0] == calls[1]


@pytest.mark.parametrize("found", [None, {}, {"shape": None}, {"shape": "2031"}])
def test_a_launcher_of_no_known_shape_is_not_called(found):
    with pytest.raises(CannotCarry, match="no launcher of a known shape"):
        shape_of(found)


# What launch-cluster.sh (2026-09) makes of a launch script for each node; see its make_node_script.
NODE_SCRIPT = r"""
sed -E 's/--distributed-executor-backend(=|[[:space:]]+)[^[:space:]]+//g' "$1" | grep -Ev '^[[:space:]\\]*$' > "$2"
sed -i "$ s/[[:space:]]*\\\\[[:space:]]*$//" "$2"
sed -i "$ s/$/ --nnodes 2 --node-rank 1/" "$2"
"""


def test_a_script_survives_what_the_launcher_does_to_it(tmp_path):
    (tmp_path / "vllm").write_text(f"#!{sys.executable} -S\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (tmp_path / "vllm").chmod(0o755)
    value = "line\n\nline \\\n'\"$x`"
    fields = {
        "model": "org/toy", "min_nodes": 2, "env": {"T": value},
        "command": "export X=1 && \\\n\n\\\n vllm serve {model} -tp {tensor_parallel} \\\n --x '{v}' --port {port} \\\n",
        "defaults": {"tensor_parallel": 2, "v": "x"}, "recipe_version": "1", "name": "T", "container": "c",
    }  # fmt: skip
    fields["env"]["T"] = value.replace("`", "").replace("$x", "")
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(fields))
    plan = spark_recipe.render(spark_recipe.load(tmp_path / "toy.yaml"), NODES, 8888, overrides={"v": value})
    (tmp_path / "script").write_text(SEPTEMBER.call(plan).script)
    subprocess.run(["bash", "-c", NODE_SCRIPT, "x", "script", "patched"], cwd=tmp_path, check=True)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "patched"], cwd=tmp_path, env=path, capture_output=True, check=True)
    expected = ["serve", "org/toy", "-tp", "2", "--x", value, "--port", "8888", "--nnodes", "2", "--node-rank", "1"]
    assert json.loads(done.stdout) == expected
