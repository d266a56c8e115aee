#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: stop the copies of a model that this Spark makes."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_copy_stop
short_description: Stop copying a model
description:
  - Ends the copies that were started on this Spark. What came stays, and the next copy goes on there.
attributes:
  check_mode: {support: full, description: Says what would be stopped.}
  diff_mode: {support: none, description: RV(stopped) says it all.}
  idempotent: {support: full, description: Where no copy runs nothing is changed.}
options:
  name: {type: str, required: true, description: "A Hub repo, C(org/name), or the absolute path of a local model."}
  state_dir: {type: path, required: true, description: Where the records and logs of copies are.}
  hosts: {type: list, elements: str, required: true, description: The Sparks that copies may go to or come to.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Stop the copy of Qwen3.6
  spark.control.weights_copy_stop:
    name: Qwen/Qwen3.6-35B-A3B-FP8
    state_dir: ~/.spark-control
    hosts: [spark1, spark2]
"""

RETURN = r"""
stopped: {description: "What was stopped, a sentence each.", returned: success, type: list, elements: str,
          sample: [the copy to spark2 was stopped at 12 of 61 GB]}
message: {description: The same as one., returned: always, type: str, sample: no copy was running}
problem: {description: What went wrong., returned: when something did, type: dict,
          sample: {code: disk_full, message: "org/name needs 12 GB more on spark2, and 3.0 GB are free in /home/x."}}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils import spark_transfer
from ansible_collections.spark.control.plugins.module_utils.spark_copies import Copies


def stop(wish: dict, check: bool) -> dict:
    """Stop what runs here."""
    stopped = Copies(wish["name"], wish["state_dir"]).stop(wish["hosts"], check)
    return {"changed": bool(stopped), "stopped": stopped, "message": "; ".join(stopped) or "no copy was running"}


def main() -> None:
    """Stop, and answer."""
    module = AnsibleModule(
        {
            "name": {"type": "str", "required": True},
            "state_dir": {"type": "path", "required": True},
            "hosts": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    spark_transfer.answer(module, lambda: stop(module.params, module.check_mode))


if __name__ == "__main__":
    main()
