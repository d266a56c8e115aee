#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: watch the copies of a model that this Spark makes, one bounded stretch."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_copy_watch
short_description: Watch a model being copied
description:
  - Is meant for C(until). One call watches until there is news, at most O(hold_seconds).
  - What goes wrong is answered by target in RV(copies) rather than as a failed task; the others go on.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  name: {type: str, required: true, description: "A Hub repo, C(org/name), or the absolute path of a local model."}
  state_dir: {type: path, required: true, description: Where the records and logs of copies are.}
  copies:
    type: list
    elements: dict
    required: true
    description: What M(spark.control.weights_copy_plan) planned for this Spark to run.
  hold_seconds: {type: float, default: 10, description: The longest that one call watches.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Copy Qwen3.6
  spark.control.weights_copy_watch:
    name: Qwen/Qwen3.6-35B-A3B-FP8
    state_dir: ~/.spark-control
    copies: "{{ planned.plan.copies | selectattr('runner', 'eq', inventory_hostname) }}"
  when: inventory_hostname in planned.plan.runners
  register: watched
  until: watched.done
  retries: 100000
  delay: 0
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


def main() -> None:
    """Watch, and answer."""
    module = AnsibleModule(
        {
            "name": {"type": "str", "required": True},
            "state_dir": {"type": "path", "required": True},
            "copies": {"type": "list", "elements": "dict", "required": True},
            "hold_seconds": {"type": "float", "default": 10},
        },
        supports_check_mode=True,
    )
    wish = module.params
    copies = Copies(wish["name"], wish["state_dir"])
    spark_transfer.answer(module, lambda: copies.watch(wish["copies"], wish["hold_seconds"]), done=True)


if __name__ == "__main__":
    main()
