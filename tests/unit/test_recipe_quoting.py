"""Values that a shell would read something into arrive as one literal: run through bash, in both launchers' ways."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from ansible_collections.spark.control.plugins.module_utils import spark_recipe
from ansible_collections.spark.control.plugins.module_utils.spark_launcher import SHAPES
from ansible_collections.spark.control.plugins.module_utils.spark_recipe_shell import Reader, ShellError, commands
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SEPTEMBER, JANUARY = SHAPES["september"], SHAPES["january"]
NODES = [{"host": f"spark{n}", "address": f"10.0.0.{n}"} for n in range(1, 5)]

HOSTILE = [
    '"; rm -rf ~', "$(id)", "`id`", "a\nb", "\n", "{x}", "{{x}}", "{a,b}", "ünïcødé 漢字 🚀", "it's",
    'say "hi"', "\\", "\\\\n",
    "a\\'b", "*", "~", "~root/x", "!", "!!", "a!b'c!d", "#x", "a #b", "$HOME", "${HOME}", "$((1+1))", "&& id", "| id",
    "; id",
    "> /tmp/x", "<<EOF",
    "\t", "  two  spaces  ", "", "-x", "--port 1", "'", "''", "\"'\"'\"", "%s", "\x01\x7f", "\r\n",
    "a=b", "[a-z]", "?", "$'x'", "`", "\\\n", "-tp 8", '{"a": [1, "b"]}', "vllm serve",
]  # fmt: skip


@pytest.fixture(scope="session")
def far_side(tmp_path_factory):
    """Runs a LauncherCall as a launcher would and gives what `vllm` was called with, words as they arrived."""
    folder = tmp_path_factory.mktemp("far-side")
    vllm = folder / "vllm"
    vllm.write_text(
        f"#!{sys.executable} -S\nimport json, os, sys\n"
        "print(json.dumps([sys.argv[1:], {k: v for k, v in os.environ.items() if k.startswith('T_')}]))\n"
    )
    vllm.chmod(0o755)
    # The lines of the two launchers that carry a command; see launch-cluster.sh, `exec)` and the docker exec calls.
    (folder / "september.sh").write_text(
        'worker=$1; shift; C=$(printf "%q " "$@")\n'
        'if [[ $worker == 0 ]]; then bash -c "$C"; exit; fi\n'
        "C=$(echo \"$C\" | sed -E 's/--distributed-executor-backend(=|[[:space:]]+)[^[:space:]]+//g')\n"
        'printf -v remote \'bash -c %q\' "$C --nnodes 2"; bash -c "$remote"\n'
    )
    (folder / "january.sh").write_text('shift; C="$@"; bash -i -c "$C"\n')

    def run(call, launcher, worker=False):
        if call.script is not None:
            path = folder / "script.sh"
            path.write_text(call.script)
            command = ["bash", str(path)]
        else:
            words = call.argv[call.argv.index("exec") + 1 :]
            name = "september.sh" if launcher is SEPTEMBER else "january.sh"
            command = ["bash", str(folder / name), "1" if worker else "0", *words]
        done = subprocess.run(
            command,
            env={"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), "LC_ALL": "C.UTF-8"},
            capture_output=True,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # an interactive bash must not take the terminal of whoever runs the tests
            cwd=folder,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def recipe_of(tmp_path, command, defaults=None, env=None, version="2"):
    path = tmp_path / "r.yaml"
    fields = {
        "recipe_version": version, "name": "R", "model": "org/model", "container": "vllm-node", "command": command,
        "defaults": defaults or {}, "env": env or {}, "max_nodes": 1, "solo_only": True,
    }  # fmt: skip
    path.write_text(json.dumps(fields))
    return spark_recipe.load(path)


def flags_for(values, quote=""):
    return " ".join(f"--f{i} {quote}{{v{i}}}{quote}" for i in range(len(values)))


def arrived(words, count):
    """The words after each --f<i>, as long as there is exactly one."""
    starts = [words.index(f"--f{i}") for i in range(count)]
    return [words[at + 1] for at in starts]


def check(run, plan, launcher, values, worker=False):
    words, _env = run(launcher.call(plan), launcher, worker)
    expected = [word for i, value in enumerate(values) for word in (f"--f{i}", value)]
    assert words[2 : 2 + len(expected)] == expected
    assert len(words) == 2 + len(expected) + 2 + 2 * worker  # and the port


@pytest.mark.parametrize("launcher", [SEPTEMBER, JANUARY], ids=["september", "january"])
@pytest.mark.parametrize("quote", ["", "'", '"'], ids=["bare", "single", "double"])
@pytest.mark.parametrize("form", ["argv", "script"])
@pytest.mark.parametrize("version", ["1", "2"])
def test_hostile_values_arrive_as_one_literal(tmp_path, far_side, launcher, quote, form, version):
    names = {f"v{i}": "x" for i in range(len(HOSTILE))}
    prefix = "export T_A=1 && " if form == "script" else ""
    recipe = recipe_of(tmp_path, f"{prefix}vllm serve org/model {flags_for(HOSTILE, quote)}", names, version=version)
    overrides = {f"v{i}": value for i, value in enumerate(HOSTILE)}
    plan = spark_recipe.render(recipe, NODES[:1], 8888, overrides=overrides)
    assert (plan["argv"] is None) == (form == "script")
    check(far_side, plan, launcher, HOSTILE)


def test_hostile_values_reach_a_worker_too(tmp_path, far_side):
    names = {f"v{i}": "x" for i in range(len(HOSTILE))}
    recipe = recipe_of(tmp_path, f"vllm serve org/model {flags_for(HOSTILE)}", names)
    plan = spark_recipe.render(recipe, NODES[:1], 8888, overrides={f"v{i}": v for i, v in enumerate(HOSTILE)})
    check(far_side, plan, SEPTEMBER, HOSTILE, worker=True)


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
SHELLISH = st.text(st.sampled_from("'\"\\$`!*?~{}[]()<>|&;# \n\tax=-%^\x01\x7f"), max_size=10)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT | SHELLISH, min_size=9, max_size=9))
def test_any_value_arrives_as_one_literal(tmp_path, far_side, values):
    names = {f"v{i}": "x" for i in range(9)}
    flags = [f"--f{i} {q}{{v{i}}}{q}" for i, q in enumerate(["", "'", '"'] * 3)]
    for prefix in ("", "cd / && "):
        recipe = recipe_of(tmp_path, prefix + "vllm serve org/model " + " ".join(flags), names)
        plan = spark_recipe.render(recipe, NODES[:1], 8888, overrides={f"v{i}": v for i, v in enumerate(values)})
        for launcher in (SEPTEMBER, JANUARY):
            check(far_side, plan, launcher, values)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT | SHELLISH, min_size=6, max_size=6))
def test_an_environment_value_is_exported_as_it_is(tmp_path, far_side, values):
    env = {f"T_{i}": f"x y{i}" for i in range(6)}
    recipe = recipe_of(tmp_path, "vllm serve org/model", env=env)
    recipe.env.update({f"T_{i}": value for i, value in enumerate(values)})
    recipe.env["T_5"] = values[5] + " "
    plan = spark_recipe.render(recipe, NODES[:1], 8888)
    for launcher in (SEPTEMBER, JANUARY):
        _words, seen = far_side(launcher.call(plan), launcher)
        assert seen == recipe.env


WORDS = st.lists(
    st.sampled_from([*"'\"\\ abx-=#,.!^%", "\t", "\\\n", "\n", "é", "$'\\n'", "\\$", "\\'"]), max_size=16
).map("".join)


@given(WORDS)
def test_the_reader_sees_the_words_that_bash_sees(text):
    """A command of literal words becomes an argv without a shell, so it has to be the shell's own reading."""
    text = text.rstrip("\\")  # as `template` does: what a backslash at the very end means depends on what is before it
    script = "p() { printf '%s\\0' \"$@\"; exit; }; p " + text
    done = subprocess.run(["bash", "-c", script], capture_output=True, env={"LC_ALL": "C.UTF-8"}, check=False)
    try:
        reader = Reader("p " + text)
    except ShellError:
        assert done.returncode != 0 or "\n" in text  # bash runs a line before it reads the next
        return
    first = commands(reader.tokens)[0].words
    # A word that is not literal goes to a shell anyway, and so never becomes an argv.
    if done.returncode == 0 and all(word.literal for word in first):  # a later line may still be what bash cannot read
        assert [word.text for word in first[1:]] == done.stdout.decode().split("\0")[:-1] or not first[1:]


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("vllm serve m # {v}", "a comment"),
        ("cat <<EOF\n{v}\nEOF\nvllm serve m", "a here-document"),
        ("vllm serve `echo {v}`", "backticks"),
        ("vllm serve $(echo {v})", "$( … )"),
        ('vllm serve "$(echo {v})"', "$( … )"),
        ("vllm serve $((1 + {v}))", "arithmetic"),
        ("vllm serve $'{v}'", "$' … '"),
        ("vllm serve \\{v}", "an escape"),
        ("vllm serve ${{X:-{v}}}", "${ … }"),
        ("vllm serve <(echo {v})", "a process substitution"),
        ("x[{v}]=1; vllm serve m", "[ … ]"),
    ],
)
def test_a_placeholder_where_nothing_can_be_quoted_is_refused_by_name(tmp_path, command, place):
    with pytest.raises(spark_recipe.RecipeError) as caught:
        recipe_of(tmp_path, command, {"v": "1"}, version="1")
    assert f"command: {{v}} stands in {place}" in str(caught.value)
    assert "r.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "command",
    [
        "bash -c 'vllm serve {v}'; vllm serve m",
        'eval "X={v}"; vllm serve m',
        "X={v}; eval $X; vllm serve m",
        "X={v}; Y=$(( X )); vllm serve m",
        "[[ {v} -eq 1 ]]; vllm serve m",
        "test -v {v}; vllm serve m",
        "pip install {v} && vllm serve m",
        "X={v}; echo ${X@P}; vllm serve m",
        "X={v}; $RUN; vllm serve m",
    ],
)
def test_a_value_that_could_be_read_a_second_time_has_to_be_plain(tmp_path, command):
    recipe = recipe_of(tmp_path, command.replace("{X@P}", "{{X@P}}"), {"v": "1"}, version="1")
    assert spark_recipe.render(recipe, NODES[:1], 8888, overrides={"v": "1.5"})["script"]
    for value in ("a[$(id)]", "a b", "$(id)"):
        with pytest.raises(spark_recipe.RecipeError, match="plain value"):
            spark_recipe.render(recipe, NODES[:1], 8888, overrides={"v": value})


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
def test_a_value_that_no_transport_carries_is_refused_by_name(tmp_path, value):
    recipe = recipe_of(tmp_path, "vllm serve m --f {v}", {"v": "1"})
    with pytest.raises(spark_recipe.RecipeError, match=r"v: expected text without NUL bytes"):
        spark_recipe.render(recipe, NODES[:1], 8888, overrides={"v": value})


@pytest.mark.parametrize(
    ("default", "words"),
    [
        ("one org/two", ["one", "org/two"]),
        ("--foo --bar=1", ["--foo", "--bar=1"]),
        ("", []),
        ('{"a": 1}', ['{"a": 1}']),
        ("a; id", ["a; id"]),
        ("a\nb", ["a\nb"]),
    ],
)
def test_flags_text_in_an_authors_default_keeps_its_spaces(tmp_path, default, words):
    recipe = recipe_of(tmp_path, "vllm serve m --f {v} --port {port}", {"v": default})
    argv = spark_recipe.render(recipe, NODES[:1], 8888)["argv"]
    assert argv == ["vllm", "serve", "m", "--f", *words, "--port", "8888"]


def test_an_override_never_splits(tmp_path):
    recipe = recipe_of(tmp_path, "vllm serve m --f {v} --port {port}", {"v": "one two"})
    argv = spark_recipe.render(recipe, NODES[:1], 8888, overrides={"v": "three four"})["argv"]
    assert argv[4] == "three four"
