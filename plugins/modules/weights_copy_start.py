#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: start rsync for each copy of a model that this Spark is to make; it outlives SSH."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_copy_start
short_description: Start to copy a model
description:
  - Starts rsync in a session of its own, into a hidden folder beside the model's at the far end. A copy that runs
    already is attached to; files that came in part are gone on with.
  - What goes wrong is answered as a problem rather than as a failed task.
attributes:
  check_mode: {support: full, description: Says what would be copied.}
  diff_mode: {support: full, description: Lists the files that come.}
  idempotent: {support: full, description: A copy that runs already is left to run.}
options:
  name: {type: str, required: true, description: "A Hub repo, C(org/name), or the absolute path of a local model."}
  state_dir: {type: path, required: true, description: Where the records and logs of copies are.}
  key: {type: str, default: ~/.ssh/id_ed25519, description: The key with which a Spark reaches the others.}
  copies:
    type: list
    elements: dict
    required: true
    description: What M(spark.control.weights_copy_plan) planned for this Spark to run.
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Start to copy Qwen3.6
  spark.control.weights_copy_start:
    name: Qwen/Qwen3.6-35B-A3B-FP8
    state_dir: ~/.spark-control
    copies: "{{ planned.plan.copies | selectattr('runner', 'eq', inventory_hostname) }}"
  when: inventory_hostname in planned.plan.runners
  register: started
"""

RETURN = r"""
done: {description: Whether no copy runs here any more., returned: always, type: bool}
copies: {description: By target where each copy is or how it ended., returned: success, type: dict,
         sample: {spark2: {done: true, problem: null}}}
message: {description: Where it is as a sentence., returned: always, type: str,
          sample: "12 of 61 GB, 840 MB/s, about 60 s left"}
phase: {description: What it does., returned: while it runs, type: str, sample: copying}
percent: {description: How far it is., returned: while it runs, type: int, sample: 19}
seconds: {description: Seconds since it began., returned: while it runs, type: float}
problem: {description: What went wrong., returned: when something did, type: dict,
          sample: {code: disk_full, message: "org/name needs 12 GB more on spark2, and 3.0 GB are free in /home/x."}}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils import spark_transfer
from ansible_collections.spark.control.plugins.module_utils.spark_copies import Copies


def start(wish: dict, check: bool) -> dict:
    """Start what does not run, with the files that come as the diff."""
    if check:
        told = {"changed": True, "copies": {}, "message": "would be copied"}
    else:
        told = Copies(wish["name"], wish["state_dir"]).start(wish["copies"], wish["key"])
    if told["changed"]:
        told["diff"] = {"before": "", "after": "".join(copy["listed"] for copy in wish["copies"])}
    return told


def main() -> None:
    """Start, and answer."""
    module = AnsibleModule(
        {
            "name": {"type": "str", "required": True},
            "state_dir": {"type": "path", "required": True},
            "key": {"type": "str", "default": "~/.ssh/id_ed25519", "no_log": False},
            "copies": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    spark_transfer.answer(module, lambda: start(module.params, module.check_mode), done=True)


if __name__ == "__main__":
    main()
