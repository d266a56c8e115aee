#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: which models are on this host's disks."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_scan
short_description: Look at the models on this host's disks
description:
  - Reads the Hugging Face cache, in both of its layouts, and folders of local models, and changes nothing.
  - Nothing on a disk makes it fail. What cannot be read counts as not there, and every folder says why it is empty.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  hf_home: {type: path, required: true, description: The Hugging Face cache folder.}
  local_model_dirs:
    type: list
    elements: path
    default: []
    description: Folders of local or fine-tuned models; each is a model or has models in it.
  model:
    type: str
    description: Look only at this one, C(org/name) or a local model's absolute path.
  revision:
    type: str
    description: The branch, tag or commit of O(model) that would be served; the main branch without it.
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Look at the disks
  spark.control.weights_scan:
    hf_home: ~/.cache/huggingface
    local_model_dirs: [~/models]
  register: scanned
"""

RETURN = r"""
scan:
  description: What is there. The role's README tells the keys of a model.
  returned: always
  type: dict
  sample:
    at: 1795000000.0
    folders: [{path: /home/spark/.cache/huggingface/hub, kind: cache, models: 1, reason: ""}]
    models:
      - {name: Qwen/Qwen3.6-35B-A3B-FP8, kind: cache, repo: Qwen/Qwen3.6-35B-A3B-FP8, revisions: 1, files: 19,
         bytes: 37460000000, frees: 37460004864, weights_bytes: 37450000000, state: complete, progress: null,
         missing: [], missing_count: 0, reason: "", last_used: 1795000000.0,
         facts: {model_type: {value: qwen3_5_moe, file: config.json, key: model_type}}}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils import spark_cache


def main() -> None:
    """Read, and answer."""
    module = AnsibleModule(
        {
            "hf_home": {"type": "path", "required": True},
            "local_model_dirs": {"type": "list", "elements": "path", "default": []},
            "model": {"type": "str"},
            "revision": {"type": "str"},
        },
        supports_check_mode=True,
    )
    wish = module.params
    if wish["model"] is None:
        scan = spark_cache.scan(wish["hf_home"], wish["local_model_dirs"])
    else:
        entry = spark_cache.look(wish["hf_home"], wish["model"], wish["revision"], wish["local_model_dirs"])
        scan = {"at": entry.pop("at", None), "folders": [], "models": [entry]}
    module.exit_json(changed=False, scan=scan)


if __name__ == "__main__":
    main()
