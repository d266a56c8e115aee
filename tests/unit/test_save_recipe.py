"""A confirmed recipe becomes a file, once, and never over one that a person wrote."""

from __future__ import annotations

import hashlib
import os
import stat

import pytest
from ansible_collections.spark.control.plugins.action.recipe_save import save
from ansible_collections.spark.control.plugins.module_utils import spark_recipe, spark_recipe_file
from hypothesis import given
from hypothesis import strategies as st


def fields(**other):
    """What a suggestion's `recipe` looks like."""
    return {
        "recipe_version": "1",
        "name": "My tune",
        "model": "org/my-tune",
        "container": "vllm-node",
        "solo_only": True,
        "defaults": {"port": 8888, "host": "0.0.0.0", "limit": '{"image": 4}'},
        "command": "vllm serve org/my-tune --port {port} --host {host} --limit-mm-per-prompt '{limit}'",
    } | other


def tree(folder):
    """Every file with its bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_recipe_is_saved_once_and_loads(tmp_path):
    done = save("my-tune", fields(), [str(tmp_path)])
    path = tmp_path / "my-tune.yaml"
    assert done["changed"]
    assert done["result"]["path"] == str(path)
    first, _, body = path.read_text().partition("\n")
    assert first.startswith("# Inferred by Spark Control on 20")
    assert " from org/my-tune (sha256" in first
    assert hashlib.sha256(body.encode()).hexdigest() in first
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["my-tune.yaml"]
    recipe = spark_recipe.load(path)
    assert recipe.title == "My tune"
    before = path.stat().st_mtime_ns
    again = save("my-tune", fields(), [str(tmp_path)])
    assert (again["changed"], again["result"]["ok"]) == (False, True)
    assert path.stat().st_mtime_ns == before
    assert "diff" not in again


def test_a_preview_shows_the_file_and_writes_nothing(tmp_path):
    done = save("my-tune", fields(), [str(tmp_path)], preview=True)
    assert done["changed"]
    assert done["result"]["message"].startswith("my-tune would be saved as ")
    assert (done["diff"]["before"], done["diff"]["after"].count("\n")) == ("", 15)
    assert not list(tmp_path.iterdir())


def test_an_inferred_recipe_is_written_anew(tmp_path):
    save("my-tune", fields(), [str(tmp_path)])
    done = save("my-tune", fields(description="Better"), [str(tmp_path)])
    assert done["changed"]
    assert "description: Better" in done["diff"]["after"]
    assert done["diff"]["before"].startswith("# Inferred")
    assert "description: Better" in (tmp_path / "my-tune.yaml").read_text()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("recipe_version: '1'\nname: mine\n"),
        lambda path: path.write_text(path.read_text() + "# a note of mine\n"),
        lambda path: path.write_text(path.read_text().replace("8888", "8889")),
        lambda path: path.write_text(path.read_text().split("\n", 1)[1]),
        lambda path: path.write_text("# Inferred by Spark Control\n"),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text(""),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to("/etc/hostname")),
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
        lambda path: path.rename(path.with_suffix(".yml")),
    ],
)
def test_never_over_what_a_person_wrote_or_changed(tmp_path, spoil):
    folder = tmp_path / "recipes"
    folder.mkdir()
    save("my-tune", fields(), [str(folder)])
    spoil(folder / "my-tune.yaml")
    names = sorted(os.listdir(folder))
    kept = {name: (folder / name).lstat().st_mtime_ns for name in names}
    done = save("my-tune", fields(description="other"), [str(folder)])
    assert not done["changed"]
    assert (done["result"]["ok"], done["result"]["reason"]) == (False, "taken")
    assert done["result"]["problems"][0]["field"] == "model"
    assert {name: (folder / name).lstat().st_mtime_ns for name in sorted(os.listdir(folder))} == kept


def test_a_name_that_another_folder_has_is_taken(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    (second / "my-tune.yml").write_text("x")
    done = save("my-tune", fields(), [str(first), str(second)])
    assert done["result"]["reason"] == "taken"
    assert not list(first.iterdir())


NAMES = [
    "",
    "../x",
    "/etc/x",
    "a/b",
    ".hidden",
    "-x",
    "a b",
    "a\nb",
    "x.yaml",
    "x.yml",
    "ü",
    "x" * 200,
    "{{ 1 }}",
    "$(id)",
]


@pytest.mark.parametrize("name", NAMES)
def test_bad_names_are_refused_with_their_field(tmp_path, name):
    done = save(name, fields(), [str(tmp_path / "recipes")])
    assert done["result"]["reason"] == "bad_recipe"
    assert [problem["field"] for problem in done["result"]["problems"]] == ["model"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("other", "field"),
    [
        ({"container": ""}, "recipe.container"),
        ({"container": "a b; id"}, "recipe.container"),
        ({"command": "sglang serve x"}, "recipe.runtime"),
        ({"command": "rm -rf /"}, "recipe.command"),
        ({"command": "vllm serve x '"}, "recipe.command"),
        ({"command": "vllm serve {nothing}"}, "recipe.command"),
        ({"command": 3}, "recipe.command"),
        ({"name": ""}, "recipe.name"),
        ({"name": ["x"]}, "recipe.name"),
        ({"model": ""}, "recipe.model"),
        ({"model": "/a/../b"}, "recipe.model"),
        ({"env": {"HF_TOKEN": "x"}}, "recipe.env.HF_TOKEN"),
        ({"env": {"A B": "x"}}, "recipe.env"),
        ({"defaults": {"port": "x"}}, "recipe.defaults.port"),
        ({"mods": ["../x"]}, "recipe.mods"),
        ({"recipe_version": "2"}, "recipe.recipe_version"),
        ({"pre_exec": ["id"]}, "recipe.pre_exec"),
        ({"runtime": "sglang"}, "recipe.runtime"),
        ({"defaults": {"x": float("nan")}}, "recipe"),
        ({"description": "x" * 70_000}, "recipe"),
        ({"name": "\ud800"}, "recipe.name"),
        ({"solo_only": True, "cluster_only": True}, "recipe.solo_only"),
    ],
)
def test_a_bad_recipe_is_refused_with_its_field_and_nothing_is_written(tmp_path, other, field):
    done = save("my-tune", fields(**other), [str(tmp_path)])
    assert done["result"]["reason"] == "bad_recipe", done
    assert done["result"]["problems"][0]["field"] == field
    assert done["result"]["message"].startswith("The recipe was not saved: ")
    assert not list(tmp_path.iterdir())


def test_what_is_nested_without_end_is_refused(tmp_path):
    deep: dict = {}
    for _ in range(5000):
        deep = {"x": deep}
    done = save("my-tune", fields(metadata=deep), [str(tmp_path)])
    assert done["result"]["reason"] == "bad_recipe"


def test_a_folder_that_is_not_there_or_not_writable_is_said(tmp_path):
    done = save("my-tune", fields(), [str(tmp_path / "nowhere/recipes")])
    assert done["result"]["reason"] == "not_writable"
    assert "No such file" in done["result"]["message"]
    assert save("my-tune", fields(), [])["result"]["reason"] == "not_writable"


def test_only_the_folder_itself_is_made(tmp_path):
    folder = tmp_path / "recipes"
    assert save("my-tune", fields(), [str(folder)], preview=True)["result"]["outcome"] == "preview"
    assert not folder.exists()
    assert save("my-tune", fields(), [str(folder)])["result"]["outcome"] == "saved"
    assert [path.name for path in folder.iterdir()] == ["my-tune.yaml"]


def test_a_file_that_comes_meanwhile_is_not_written_over(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a person's")
    with pytest.raises(spark_recipe_file.Refused):
        spark_recipe_file.save(str(path), "ours", fresh=True)
    assert tree(tmp_path) == {"x.yaml": b"a person's"}


SCALARS = st.one_of(st.text(max_size=20), st.integers(-(10**9), 10**9), st.booleans(), st.floats(allow_nan=False))
HOSTILE = [
    "a\nb",
    "a: b",
    "# x",
    "'",
    '"',
    "{x}",
    "{{ 1 }}",
    "$(id)",
    "- x",
    "&a",
    "*a",
    "!x",
    "\x85",
    "\u2028",
    "\ufeff",
    "~",
]


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.one_of(SCALARS, st.sampled_from(HOSTILE)),
            "description": st.one_of(SCALARS, st.sampled_from(HOSTILE)),
            "defaults": st.dictionaries(st.text(max_size=8), st.one_of(SCALARS, st.sampled_from(HOSTILE)), max_size=4),
            "env": st.dictionaries(st.sampled_from(["A", "B_2", "x y"]), st.one_of(SCALARS, st.sampled_from(HOSTILE))),
            "metadata": st.dictionaries(st.text(max_size=8), SCALARS, max_size=3),
            "command": st.one_of(
                st.text(max_size=30).map("vllm serve org/my-tune --x ".__add__),
                st.sampled_from(HOSTILE).map("vllm serve org/my-tune --x '{}' --y 'a --b'".format),
            ),
        },
    )
)
def test_what_is_saved_launches_what_was_given_or_is_refused(tmp_path_factory, other):
    folder = tmp_path_factory.mktemp("recipes")
    done = save("my-tune", fields(**other), [str(folder)])
    if not done["result"]["ok"]:
        assert done["result"]["problems"]
        assert not list(folder.iterdir())
        return
    nodes = [{"host": "spark1", "address": "10.0.0.1"}]
    given = spark_recipe.render(spark_recipe.from_mapping(fields(**other), "my-tune"), nodes, 8888)
    saved = spark_recipe.render(spark_recipe.load(folder / "my-tune.yaml"), nodes, 8888)
    assert saved["digest"] == given["digest"]
    assert saved["title"] == given["title"]
    assert not save("my-tune", fields(**other), [str(folder)])["changed"]
