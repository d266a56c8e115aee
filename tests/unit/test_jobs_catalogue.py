"""Operations read from playbooks and argument specs, and what a caller may give them."""

import pytest

from tests.integration.jobs_project import lay
from webui.jobs import operations, validate


@pytest.fixture
def project(tmp_path):
    return lay(tmp_path).project


def test_an_operation_takes_what_its_role_declares(project):
    known = operations(project)
    assert "tidy_long" not in known
    swap = known["swap"]
    assert swap.description == "Swap the model"
    assert list(swap.options) == ["model", "token", "count", "mode", "folder", "nodes"]
    assert swap.options["model"] == {
        "type": "str", "required": True, "default": None, "choices": None, "elements": None,
        "description": "The model by name.", "secret": False,
    }  # fmt: skip
    assert swap.secrets == {"token"}
    assert known["empty"].description == "Do nothing"
    assert known["empty"].options == {}


def test_what_the_playbook_sets_itself_is_no_option(project):
    (project / "playbooks/fixed.yml").write_text(
        "- {name: Fixed, hosts: all, vars: {count: 1}, tasks: [{ansible.builtin.include_role: "
        "{name: model, tasks_from: swap.yml}, vars: {mode: solo}}]}\n"
    )
    assert set(operations(project)["fixed"].options) == {"model", "token", "folder", "nodes"}


def test_roles_of_a_play_and_blocks_are_seen(project):
    (project / "playbooks/two.yml").write_text(
        "- {hosts: all, roles: [{role: other}], tasks: [{block: [{import_role: {name: model, tasks_from: long}}]}]}\n"
    )
    spec = project / "roles/other/meta/argument_specs.yml"
    spec.parent.mkdir(parents=True)
    spec.write_text("argument_specs: {main: {short_description: Other, options: {a: {}}}}\n")
    two = operations(project)["two"]
    assert (two.description, list(two.options)) == ("Other", ["a", "gate", "token"])


@pytest.mark.parametrize("text", ["", "[", "- 1\n", "{}", "- hosts: all\n  tasks: nonsense\n", "- {roles: [[1]]}\n"])
def test_a_playbook_that_makes_no_sense_breaks_nothing(project, text):
    (project / "playbooks/odd.yml").write_text(text)
    (project / "roles/model/meta/argument_specs.yml").write_text("argument_specs: {swap: {options: [1]}}\n")
    known = operations(project)
    assert "empty" in known
    assert "swap" not in known


def test_a_changed_spec_is_seen(project):
    assert "fresh" not in operations(project)
    (project / "playbooks/fresh.yml").write_text("- {name: Fresh, hosts: all}\n")
    assert operations(project)["fresh"].description == "Fresh"


def test_values_get_their_types_and_defaults_stay_away(project):
    clean, errors = validate("swap", {"model": "qwen", "count": "7", "nodes": "a,b", "folder": "~/x"}, project)
    assert errors == []
    assert clean == {"model": "qwen", "count": 7, "nodes": ["a", "b"], "folder": "~/x"}
    assert validate("swap", {"model": "qwen", "count": None}, project) == ({"model": "qwen"}, [])


@pytest.mark.parametrize(
    ("given", "field", "said"),
    [
        ({}, "model", "is required"),
        ({"model": "q", "modle": "q"}, "modle", "it takes model"),
        ({"model": "q", "count": "many"}, "count", "int"),
        ({"model": "q", "mode": "both"}, "mode", "solo"),
        ({"model": "q" * 4097}, "model", "longer than 4096"),
        ({"model": "a\nb"}, "model", "control character"),
        ({"model": "a\x00b"}, "model", "control character"),
        ({"model": "a\ud800"}, "model", "control character"),
        ({"model": "q", "nodes": [["x\x1b"]]}, "nodes", "control character"),
        ({"model": "q", "nodes": [[[[[[[["deep"]]]]]]]]}, "nodes", "nested"),
        ({"model": "q", "nodes": ["x"] * 1001}, "nodes", "more than 1000"),
        ({"model": "q", "count": float("nan")}, "count", "finite"),
        ({"model": {"__ansible_vault": "x"}}, "model", "plain names"),
        ({"model": object()}, "model", "JSON"),
    ],
)
def test_what_does_not_fit_is_refused_by_field(project, given, field, said):
    clean, errors = validate("swap", given, project)
    assert [error["field"] for error in errors] == [field]
    assert said in errors[0]["message"]
    assert field not in clean


def test_a_secret_is_in_no_message(project):
    _, errors = validate("swap", {"model": "q", "token": {"hunter2": "hunter2"}}, project)
    assert "hunter2" not in str(errors)


@pytest.mark.parametrize("name", ['"; rm -rf ~', "$(id)", "{{ 1 }}", "a'b", "モデル", "--check", "../../x"])
def test_hostile_values_are_data(project, name):
    assert validate("swap", {"model": name}, project) == ({"model": name}, [])
