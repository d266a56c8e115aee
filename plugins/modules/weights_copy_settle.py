#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: verify at the far end what a copy of a model brought, and put it in its place."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_copy_settle
short_description: Verify a model that was copied
description:
  - Compares what came with what the model consists of, by size or by hash, and puts it in its place.
  - What goes wrong is answered as a problem rather than as a failed task.
attributes:
  check_mode: {support: full, description: Says that it would be verified.}
  diff_mode: {support: none, description: M(spark.control.weights_copy_start) lists the files.}
  idempotent: {support: full, description: A model that is whole is left.}
options:
  name: {type: str, required: true, description: "A Hub repo, C(org/name), or the absolute path of a local model."}
  revision: {type: str, description: "Of a repo the branch, tag or commit; the main branch without it."}
  hf_home: {type: path, required: true, description: The Hugging Face cache folder.}
  local_dirs: {type: list, elements: path, default: [], description: The folders of local models.}
  manifest: {type: dict, required: true, description: What the model consists of.}
  verify: {type: str, choices: [size, hash], default: size, description: How what arrived is compared.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Verify what arrived
  spark.control.weights_copy_settle:
    name: Qwen/Qwen3.6-35B-A3B-FP8
    hf_home: ~/.cache/huggingface
    manifest: "{{ arrived.manifest }}"
    verify: hash
  when: inventory_hostname in arrived.hosts
  register: settled
"""

RETURN = r"""
message: {description: What was done., returned: always, type: str, sample: verified}
problem: {description: What went wrong., returned: when something did, type: dict,
          sample: {code: disk_full, message: "org/name needs 12 GB more on spark2, and 3.0 GB are free in /home/x."}}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils import spark_copy, spark_transfer
from ansible_collections.spark.control.plugins.module_utils.spark_transfer import Trouble


def settle(wish: dict, check: bool) -> dict:
    """Verify, and put in place."""
    if check:
        return {"changed": True, "message": "would be verified"}
    root = spark_copy.place(wish["hf_home"], wish["local_dirs"], wish["name"])
    changed = spark_copy.settle(root, wish["manifest"], wish["verify"] == "hash")
    found = spark_copy.look(wish["hf_home"], wish["local_dirs"], wish["name"], wish["revision"])
    if not found["complete"]:
        raise Trouble("incomplete", f"All files came, but the model is not whole: {found['reason']}.")
    return {"changed": changed, "message": "verified"}


def main() -> None:
    """Settle, and answer."""
    module = AnsibleModule(
        {
            "name": {"type": "str", "required": True},
            "revision": {"type": "str"},
            "hf_home": {"type": "path", "required": True},
            "local_dirs": {"type": "list", "elements": "path", "default": []},
            "manifest": {"type": "dict", "required": True},
            "verify": {"type": "str", "choices": ["size", "hash"], "default": "size"},
        },
        supports_check_mode=True,
    )
    spark_transfer.answer(module, lambda: settle(module.params, module.check_mode))


if __name__ == "__main__":
    main()
