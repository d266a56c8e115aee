#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: what this Spark has of a model that is to be copied, and which other Sparks it reaches."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_copy_look
short_description: Look for a model that is to be copied
description:
  - Says what this Spark has of the model, what is free, and which of its peers it reaches over SSH.
  - The action plugin of the same name adds the play's other Sparks as O(peers).
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  name: {type: str, required: true, description: "A Hub repo, C(org/name), or the absolute path of a local model."}
  revision: {type: str, description: "Of a repo the branch, tag or commit; the main branch without it."}
  hf_home: {type: path, required: true, description: The Hugging Face cache folder.}
  local_dirs: {type: list, elements: path, default: [], description: The folders of local models.}
  key: {type: str, default: ~/.ssh/id_ed25519, description: The key with which a Spark reaches the others.}
  peers:
    type: list
    elements: dict
    default: []
    description: The other Sparks, each with C(host), C(address) and perhaps C(user); the action plugin sets it.
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Look for Qwen3.6 on every Spark
  spark.control.weights_copy_look:
    name: Qwen/Qwen3.6-35B-A3B-FP8
    hf_home: ~/.cache/huggingface
  register: looked
"""

RETURN = r"""
looked:
  description:
    - What this Spark has. C(manifest) is what the model consists of where it is whole; C(have) and C(staged) are bytes
      by path, of what is in place and of what came before; C(closed) is why nothing can be put there; C(reaches) is
      by Spark null or why it is not reached.
  returned: success
  type: dict
  sample: {root: /home/x/.cache/huggingface/hub/models--org--name, stage: /home/x/.cache/…, there: true, complete: true,
           reason: "", manifest: {}, have: {}, staged: {}, free: 1536818380800, rsync: true, closed: null,
           reaches: {spark2: null}}
problem: {description: What went wrong., returned: when something did, type: dict,
          sample: {code: disk_full, message: "org/name needs 12 GB more on spark2, and 3.0 GB are free in /home/x."}}
"""

import os
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils import spark_copy, spark_transfer
from ansible_collections.spark.control.plugins.module_utils.spark_transfer import Trouble


def look(wish: dict) -> dict:
    """What is here, and whom this Spark reaches."""
    found = spark_copy.look(wish["hf_home"], wish["local_dirs"], wish["name"], wish["revision"])
    found |= {
        "free": spark_transfer.free(os.path.dirname(found["root"])),
        "rsync": bool(shutil.which("rsync")),
        "closed": closed(found),
        "reaches": spark_copy.reaches(wish["key"], wish["peers"]),
    }
    return {"looked": found}


def closed(found: dict) -> str | None:
    """Why nothing can be put in the model's place here, or None."""
    root = found["root"]
    inside = [os.path.join(root, name) for name in ("blobs", "snapshots", "refs") if found["there"]]
    try:
        spark_transfer.must_write(os.path.dirname(root), *inside, found["stage"])
    except Trouble as trouble:
        return str(trouble)
    return None


def main() -> None:
    """Look, and answer."""
    module = AnsibleModule(
        {
            "name": {"type": "str", "required": True},
            "revision": {"type": "str"},
            "hf_home": {"type": "path", "required": True},
            "local_dirs": {"type": "list", "elements": "path", "default": []},
            "key": {"type": "str", "default": "~/.ssh/id_ed25519", "no_log": False},
            "peers": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    spark_transfer.answer(module, lambda: look(module.params))


if __name__ == "__main__":
    main()
