"""Loading recipes: what each format takes, what each fault says, and that one bad file hides no other."""

# A table of cases reads better with a case a line.
# ruff: noqa: E501

from __future__ import annotations

import json
import os

import pytest
import yaml
from ansible_collections.spark.control.plugins.module_utils import spark_recipe
from ansible_collections.spark.control.plugins.module_utils.spark_recipe import RecipeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

V1 = {
    "recipe_version": "1", "name": "Toy", "model": "org/toy", "container": "vllm-node",
    "command": "vllm serve org/toy --port {port} -tp {tensor_parallel}",
    "defaults": {"port": 1, "tensor_parallel": 1},
}  # fmt: skip
V2 = {"model": "org/toy", "runtime": "vllm", "container": "vllm-node", "command": "vllm serve {model} --port {port}"}


@pytest.fixture
def write(tmp_path):
    def write(fields, name="x.yaml"):
        folder = tmp_path / "recipes"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text(fields if isinstance(fields, str) else yaml.safe_dump(fields, sort_keys=False))
        return path

    return write


def messages(path):
    with pytest.raises(RecipeError) as caught:
        spark_recipe.load(path)
    assert caught.value.reason == "broken_recipe"
    return caught.value.messages


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (V1, {"defaults": {"port": "abc", "tensor_parallel": 1}}, "defaults.port: expected a whole number of at least 1, got 'abc'"),
        (V1, {"defaults": {"port": True, "tensor_parallel": 1}}, "defaults.port: expected a whole number of at least 1, got true"),
        (V1, {"defaults": []}, None),
        (V1, {"defaults": [1]}, "defaults: expected a mapping, got a list"),
        (V1, {"name": None}, "name: expected text, the field is missing"),
        (V1, {"container": None}, "container: expected text, the field is missing"),
        (V1, {"command": None}, "command: expected text, the field is missing"),
        (V1, {"command": ["vllm"]}, "command: expected text, got a list"),
        (V2, {"model": None}, "model: expected text, the field is missing"),
        (V2, {"model": 7}, "model: expected text, got 7"),
        (V2, {"min_nodes": "two"}, "min_nodes: expected a whole number of at least 1, got 'two'"),
        (V2, {"min_nodes": 3, "max_nodes": 2}, "max_nodes: expected at least 3, got 2"),
        (V2, {"mode": "both"}, "mode: expected auto, solo or cluster, got 'both'"),
        (V2, {"solo_only": "yes"}, "solo_only: expected true or false, got 'yes'"),
        (V2, {"container": "bad image; id"}, "container: expected a docker image such as vllm-node or name/image:tag, got 'bad image; id'"),
        (V2, {"container": "-v/:/x"}, "container: expected a docker image such as vllm-node or name/image:tag, got '-v/:/x'"),
        (V2, {"mods": ["../x"]}, "mods: expected paths below the launcher's folder, such as mods/fix-x, got '../x'"),
        (V2, {"mods": ["/etc"]}, "mods: expected paths below the launcher's folder, such as mods/fix-x, got '/etc'"),
        (V2, {"mods": "x"}, "mods: expected a list of folders, got 'x'"),
        (V2, {"env": {"A-B": "x"}}, "env: expected a name of letters, digits and underscores, got 'A-B'"),
        (V2, {"env": {"HF_TOKEN": "x"}}, "env.HF_TOKEN: expected no secret in a recipe; it belongs in the secret file"),
        (V2, {"env": {"A": [1]}}, "env.A: expected text or a number, got a list"),
        (V2, {"env": {"A": "$HOME/x"}}, "env.A: expected the value itself, got '$HOME/x'; nothing is expanded here"),
        (V2, {"env": {"A": "a\0b"}}, "env.A: expected text without NUL bytes or broken characters"),
        (V2, {"env": ["A=1"]}, "env: expected a mapping, got a list"),
        (V2, {"pre_exec": ["pip install x"]}, "pre_exec: expected nothing, commands beside the launch are not run here; use a mod"),
        (V2, {"post_commands": ["true"]}, "post_commands: expected nothing, commands beside the launch are not run here; use a mod"),
        (V2, {"command": "vllm serve {nope}"}, "command: {nope}: expected a name from defaults (data_parallel, host, model, pipeline_parallel, port, tensor_parallel)"),
        (V1, {"command": "vllm serve {port:>9}"}, "command: line 1: expected a literal { to be doubled, {{, or {name}"),
        (V1, {"command": "vllm serve x\n --j '{\"a\": 1}'"}, "command: line 2: expected a literal { to be doubled, {{, or {name}"),
        (V2, {"command": "vllm serve 'x"}, "command: expected shell text, got one where a quote opens and never closes"),
        (V2, {"command": "bash start.sh"}, "command: expected a `vllm serve …` command, got 'bash start.sh'"),
        (V2, {"defaults": {"a": [1]}, "command": "vllm serve {a}"}, "defaults.a: expected text, a number or true or false, for {a}"),
        (V2, {"defaults": {"a": "{b}", "b": "{a}"}, "command": "vllm serve {a}"}, "defaults.a: expected a value that does not lead back to itself"),
        (V2, {"recipe_version": "newest"}, "recipe_version: expected \"1\" or \"2\", got 'newest'"),
        (V2, {"metadata": {"model_params": "many"}}, "metadata.model_params: expected a count such as 8B, got 'many'"),
        (V2, {"metadata": {"vision": "yes"}}, "metadata.vision: expected true or false, got 'yes'"),
        (V2, {"runtime": "sglang"}, "runtime: sglang is not run here, expected a vLLM recipe"),
        (V2, {"runtime": None, "command": "llama-server -hf x"}, "runtime: llama-cpp is not run here, expected a vLLM recipe"),
        (V2, {"runtime": None, "command": "python3 -m sglang.launch_server"}, "runtime: sglang is not run here, expected a vLLM recipe"),
        (V2, {"model": "org/x-GGUF:Q4_K_M"}, "runtime: llama-cpp (model org/x-GGUF:Q4_K_M is a GGUF file) is not run here, expected a vLLM recipe"),
    ],
)  # fmt: skip
def test_a_fault_names_the_file_the_field_and_what_was_expected(write, base, change, message):
    path = write({key: value for key, value in (base | change).items() if value is not None})
    if message is None:
        assert spark_recipe.load(path)
    else:
        assert messages(path) == [f"recipes/x.yaml: {message}"]


def test_every_fault_of_a_file_is_told_at_once(write):
    path = write(V2 | {"min_nodes": 0, "env": {"1": 2, "API_KEY": "x"}, "mods": 3})
    assert len(messages(path)) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "expected YAML, got"),
        ("- a", "expected a recipe, a mapping of fields, got a list"),
        ("", "expected a recipe, a mapping of fields, got nothing"),
        ("1: 2", "expected a recipe, a mapping of fields, got a mapping"),
        ("x: !!python/object/apply:os.system ['id']", "expected YAML, got could not determine a constructor"),
        ("x: " + "[" * 5000, "expected YAML"),
        ("a: &a 1\nb: [" + "*a, " * 30 + "]", "expected at most 20 YAML aliases"),
        ("x: " + "y" * 300_000, "expected at most 64 kB"),
        ("when: 2026-13-45", "expected"),
    ],
)
def test_a_file_that_is_no_recipe_says_so(write, text, message):
    assert messages(write(text))[0].startswith(f"recipes/x.yaml: {message}")


def test_bytes_that_are_no_text_say_where(write):
    path = write("")
    path.write_bytes(b"name: \xff")
    assert messages(path) == ["recipes/x.yaml: expected UTF-8 text, got byte 0xff at 6"]


def test_the_first_of_several_folders_need_not_be_there_yet(write, tmp_path):
    folder = write(V2, "good.yaml").parent
    assert [entry["name"] for entry in spark_recipe.listing([tmp_path / "absent", folder])] == ["good"]
    assert "No such file" in spark_recipe.listing([tmp_path / "absent"])[0]["error"]


def test_one_broken_file_hides_no_other(write, tmp_path):
    folder = write(V2, "good.yaml").parent
    write("a: [", "bad.yaml")
    write(V2 | {"runtime": "trtllm", "name": "Other"}, "other.yaml")
    write(V2, "with space.yaml")
    (folder / "folder.yaml").mkdir()
    (folder / ".hidden.yaml").write_text("no")
    (folder / "notes.txt").write_text("no")
    (tmp_path / "outside.yaml").write_text(yaml.safe_dump(V2))
    (folder / "link.yaml").symlink_to(tmp_path / "outside.yaml")
    (folder / "near.yaml").symlink_to(folder / "good.yaml")
    (folder / "dangling.yaml").symlink_to(tmp_path / "nowhere.yaml")
    os.mkfifo(folder / "pipe.yaml")
    write(V2, "good.yml")
    second = tmp_path / "second"
    second.mkdir()
    (second / "good.yaml").write_text(yaml.safe_dump(V2))
    found = spark_recipe.listing([folder, second, tmp_path / "absent"])
    errors = {(entry["name"], os.path.basename(entry["source"])): entry["error"] for entry in found}
    assert errors[("good", "good.yml")]
    usable = sorted(entry["name"] for entry in found if entry["error"] is None)
    assert usable == ["good", "near"]
    said = {entry["name"]: entry["error"] for entry in found if entry["name"] not in ("good", "near")}
    assert set(said) == {"bad", "other", "with space", "folder", "link", "dangling", "pipe", "absent"}
    assert "leads out of it" in said["link"]
    assert "regular file" in said["pipe"]
    assert "No such file" in said["absent"]
    assert [e["title"] for e in found if e["name"] == "other"] == ["Other"]
    doubles = [entry["error"] for entry in found if entry["name"] == "good" and entry["error"]]
    assert len(doubles) == 2
    assert all("expected one that is not taken" in error for error in doubles)


def test_recipes_in_folders_of_the_folder_are_found(write, tmp_path):
    folder = write(V2, "own.yaml").parent
    for place, name in (("qwen", "deep"), ("a/b/c/d", "deepest"), (".git", "hidden"), ("a/b/c/d/e", "too-deep")):
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / f"{name}.yaml").write_text(yaml.safe_dump(V2))
    (folder / "qwen/own.yaml").write_text(yaml.safe_dump(V2))
    (folder / "loop").symlink_to(folder)
    found = {entry["name"]: entry["error"] for entry in spark_recipe.listing([folder]) if not entry["error"]}
    assert sorted(found) == ["deep", "deepest", "own"]
    assert spark_recipe.find("deep", [folder]) == str(folder / "qwen/deep.yaml")
    assert spark_recipe.find("own", [folder]) == str(folder / "own.yaml")  # a folder's own come first


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("qwen", ["qwen3.6-35b-a3b", "qwen3.5-397b"]),
        ("Qwen3.6_35B", ["qwen3.6-35b-a3b"]),
        ("gema", ["gemma-4-26b-a4b"]),
        ("minimax", ["minimax-m2.5"]),
        ("xyzzy", []),
    ],
)
def test_the_names_most_like_one_come_first(asked, near):
    names = ["gemma-4-26b-a4b", "minimax-m2.5", "qwen3.5-397b", "qwen3.6-35b-a3b"]
    found = spark_recipe.nearest(asked, names)
    assert found[: len(near)] and set(found[: len(near)]) == set(near) if near else found == []


def test_a_folder_without_the_right_to_read_it_is_an_error_of_its_own(write, tmp_path):
    folder = write(V2).parent
    file = tmp_path / "file"
    file.write_text("x")
    found = spark_recipe.listing([file, folder])
    assert [(entry["name"], entry["error"] is None) for entry in found] == [("file", False), ("x", True)]


def test_an_unknown_model_names_those_near_it(write):
    folder = write(V2, "gemma-4-26b.yaml").parent
    write(V2, "qwen.yaml")
    with pytest.raises(RecipeError) as caught:
        spark_recipe.find("gema-4", [folder])
    assert caught.value.reason == "unknown_model"
    assert str(caught.value) == "There is no recipe named gema-4. Did you mean gemma-4-26b?"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "-x", "x" * 129, "x\n", "x\0", None, 7, "$(id)"])
def test_a_name_is_checked_before_a_path_is_made(write, name):
    folder = write(V2).parent
    with pytest.raises(RecipeError, match="is not a model's name") as caught:
        spark_recipe.find(name, [folder])
    assert caught.value.reason == "unknown_model"


def test_unknown_fields_are_warnings(write):
    recipe = spark_recipe.load(write(V2 | {"volumes": ["~/x:/y"], "recipe_version": "4"}))
    assert recipe.warnings == (
        "recipes/x.yaml: volumes: is not used here",
        "recipes/x.yaml: recipe_version: 4 is read as 2",
    )


def test_the_format_is_recognised_as_sparkrun_does(write):
    unsaid = {key: value for key, value in V1.items() if key != "recipe_version"}
    assert spark_recipe.load(write(unsaid | {"mods": []})).version == "1"
    assert spark_recipe.load(write(unsaid)).version == "2"
    assert spark_recipe.load(write(V1 | {"recipe_version": 1})).version == "1"


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
FIELDS = st.sampled_from(
    [
        "recipe_version", "name", "description", "model", "model_revision", "runtime", "mode", "min_nodes", "max_nodes",
        "container", "defaults", "env", "command", "cluster_only", "solo_only", "metadata", "mods", "pre_exec",
    ]
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([V1, V2]), st.dictionaries(FIELDS, ANYTHING, max_size=4))
def test_a_recipe_loads_or_is_a_recipe_error_whatever_is_in_it(tmp_path, base, change):
    path = tmp_path / "x.yaml"
    path.write_text(json.dumps(base | change))
    (entry,) = spark_recipe.listing([tmp_path])
    assert entry["error"] is None or "x.yaml: " in entry["error"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("vllm serve {port}{a}'\"\\$`()<>|&;#\n{}[]!~*?="), max_size=40))
def test_any_command_loads_or_is_a_recipe_error(tmp_path, tail):
    path = tmp_path / "x.yaml"
    for base in (V1, V2):
        path.write_text(json.dumps(base | {"command": "vllm serve m " + tail, "defaults": {"a": "x y", "port": 1}}))
        (entry,) = spark_recipe.listing([tmp_path])
        assert entry["error"] is None or "x.yaml: " in entry["error"]
