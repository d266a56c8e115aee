"""The command line `spark-control`."""

import json

import pytest

from tests.integration.jobs_project import lay
from webui import cli


@pytest.fixture
def store(tmp_path, monkeypatch):
    store = lay(tmp_path)
    monkeypatch.setenv("SPARK_CONTROL_STATE", str(store.state))
    monkeypatch.setenv("SPARK_CONTROL_PROJECT", str(store.project))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("ANSIBLE_INVENTORY", raising=False)
    return store


@pytest.mark.parametrize("command", ["serve", "run", "jobs", "cancel"])
def test_every_command_has_help(store, capsys, command):
    try:
        code = cli.main([command, "--help"])
    except SystemExit as end:
        code = end.code
    assert code == 0
    assert f"usage: spark-control {command}" in capsys.readouterr().out


def test_run_lists_its_operations(store, capsys):
    assert cli.main(["run", "--help"]) == 0
    output = capsys.readouterr().out
    assert "  swap                  Swap the model" in output
    assert "tidy" not in output


def test_an_operation_lists_its_options(store, capsys):
    assert cli.main(["run", "swap", "--help"]) == 0
    output = capsys.readouterr().out
    assert "  model                 (str; required) The model by name." in output
    assert "count                 (int; default 3)" in output
    assert "one of solo, cluster" in output
    assert "secret" in output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "There are: absent, broken,"),
        (["swap"], "model: model is required."),
        (["swap", "-e", "modle=x", "-e", "model=y"], "modle:"),
        (["swap", "-e", "model"], "expected KEY=VALUE"),
        (["swap", "-e", "@/nonexistent"], "cannot be read"),
        (["swap", "-e", "{broken"], "not valid YAML or JSON"),
        (["swap", "-e", "model=x", "-e", "count=many"], "count:"),
    ],
)
def test_bad_arguments_are_named_and_run_nothing(store, capsys, words, said):
    assert cli.main(["run", *words]) == 2
    assert said in capsys.readouterr().err
    assert store.list() == []


def test_variables_come_as_words_files_and_json(store, tmp_path):
    (tmp_path / "vars.yml").write_text("model: from file\ncount: 4\n")
    given = cli._variables([f"@{tmp_path}/vars.yml", '{"mode": "solo"}', "model=a=b"])
    assert given == {"model": "a=b", "count": 4, "mode": "solo"}


def test_jobs_are_listed_and_shown(store, capsys):
    assert cli.main(["jobs"]) == 0
    assert "No jobs yet." in capsys.readouterr().out
    job = store.create("swap", {"model": "qwen", "token": "hunter2"}).job
    assert cli.main(["jobs"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["ID", "OPERATION", "STATUS", "WHEN", "TOOK", "CHANGED"]
    assert table[1].startswith(f"{job.id}  swap qwen  starting")
    assert cli.main(["jobs", job.id]) == 0
    details = capsys.readouterr().out
    assert "ansible-playbook playbooks/swap.yml -e model=qwen -e 'token=********'" in details
    assert "hunter2" not in details
    assert cli.main(["jobs", "--json", "--all"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["status"] == "starting"
    assert cli.main(["jobs", "20260101-000000-abcd"]) == 2
    assert "There is no job" in capsys.readouterr().err


def test_a_run_prints_what_ansible_prints_and_the_message_last(store, capfd, monkeypatch):
    monkeypatch.setattr(cli.sys, "argv", ["spark-control", "run", "swap", "-e", "model=qwen", "--asked-by", "me"])
    assert cli.main() == 0
    output = capfd.readouterr().out
    assert "PLAY [Swap the model] ***" in output
    assert "changed: [localhost]" in output
    job = store.list()[0]
    assert output.rstrip().splitlines()[-2:] == [
        "qwen is serving.",
        f"Job {job.id}: successful after {job.seconds:.1f} s.",
    ]
    assert job.asked_by == "me"
    assert cli.main(["cancel", job.id]) == 1


def test_a_failed_run_ends_with_1(store, capfd):
    assert cli.main(["run", "broken"]) == 1
    assert "The moon is down." in capfd.readouterr().out
