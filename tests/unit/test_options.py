"""An extra variable that is nearly an option of the playbook, and is none, is refused; others are left alone."""

from __future__ import annotations

import pytest
import yaml
from ansible_collections.spark.control.plugins.action.spark_options import slips

from tests.conftest import PROJECT

SWAP, DELETE = ["model", "force"], ["repo", "path", "hosts", "remove_recipe"]


@pytest.mark.parametrize(
    ("given", "options", "wrong"),
    [
        (["model", "force"], SWAP, []),
        (["model", "forse"], SWAP, [("forse", "force")]),
        (["modell"], SWAP, [("modell", "model")]),
        (["Force"], SWAP, [("Force", "force")]),
        (["host"], DELETE, [("host", "hosts")]),
        (["forse", "modle"], SWAP, [("forse", "force"), ("modle", "model")]),
        # What AWX, Semaphore and a job of ours add, and knobs of the inventory.
        (["awx_job_id", "tower_user_name", "semaphore_vars", "spark_control_job", "vllm_port"], SWAP, []),
        (["anything", "x", "name"], SWAP, []),
        (["model"], [], []),
    ],
)
def test_only_what_is_nearly_an_option_is_refused(given, options, wrong):
    assert slips(given, options) == wrong


def test_a_knob_that_is_like_an_option_is_a_knob():
    assert slips(["ssh_key_file"], ["ssh_key_files"]) == [("ssh_key_file", "ssh_key_files")]
    assert slips(["ssh_key_file"], ["ssh_key_files"], ["ssh_key_file"]) == []


def test_every_playbook_that_takes_options_looks_at_them():
    for path in sorted((PROJECT / "playbooks").glob("*.yml")):
        if path.stem.startswith("tidy_") or path.stem == "demo":
            continue
        (play,) = yaml.safe_load(path.read_text())
        role = play["tasks"][0]["ansible.builtin.import_role"]
        name, entry = role["name"].rpartition(".")[2], role.get("tasks_from", "main")
        specs = yaml.safe_load((PROJECT / f"roles/{name}/meta/argument_specs.yml").read_text())["argument_specs"]
        wanted = {"role": name} | ({"entry": entry} if entry != "main" else {})
        looked = [task.get("spark.control.spark_options") for task in play.get("pre_tasks", [])]
        takes = bool(specs[entry].get("options"))
        assert looked == [wanted] * takes, path.name
        assert role.get("rolespec_validate", True) is not takes, path.name  # once is enough
