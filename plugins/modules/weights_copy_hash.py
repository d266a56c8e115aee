#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: read on the source the SHA-256 of the files whose name does not tell it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_copy_hash
short_description: Hash what is to be copied
description:
  - In the Hugging Face cache a file's name is the hash of its content; a local model's files are read here, so that
    M(spark.control.weights_copy_settle) can compare by hash.
attributes:
  check_mode:
    support: partial
    description: Nothing is read.
    details: No hash is told.
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  name: {type: str, required: true, description: "A Hub repo, C(org/name), or the absolute path of a local model."}
  hf_home: {type: path, required: true, description: The Hugging Face cache folder.}
  local_dirs: {type: list, elements: path, default: [], description: The folders of local models.}
  manifest: {type: dict, required: true, description: What the model consists of.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Read the hashes that no name tells
  spark.control.weights_copy_hash:
    name: /srv/models/mine
    hf_home: ~/.cache/huggingface
    local_dirs: [/srv/models]
    manifest: "{{ planned.plan.manifest }}"
  when: inventory_hostname == planned.plan.source
  register: hashed
"""

RETURN = r"""
hashes: {description: SHA-256 by path., returned: success, type: dict}
problem: {description: What went wrong., returned: when something did, type: dict,
          sample: {code: disk_full, message: "org/name needs 12 GB more on spark2, and 3.0 GB are free in /home/x."}}
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils import spark_copy, spark_transfer


def hashes(wish: dict) -> dict:
    """The hashes that no name tells, by path."""
    root = spark_copy.place(wish["hf_home"], wish["local_dirs"], wish["name"])
    rows = [row for row in spark_copy.checked(wish["manifest"])["files"] if not (row["sha256"] or row["git"])]
    return {row["path"]: spark_copy.digest(os.path.join(root, row["path"]), row) for row in rows}


def main() -> None:
    """Read, and answer."""
    module = AnsibleModule(
        {
            "name": {"type": "str", "required": True},
            "hf_home": {"type": "path", "required": True},
            "local_dirs": {"type": "list", "elements": "path", "default": []},
            "manifest": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    spark_transfer.answer(module, lambda: {"hashes": {} if module.check_mode else hashes(module.params)})


if __name__ == "__main__":
    main()
