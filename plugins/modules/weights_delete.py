#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: delete one model's weights from this host's disk."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_delete
short_description: Delete a model's weights from this host
description:
  - Deletes a repo from the Hugging Face cache, all revisions of it and the payloads in the cache's shared store that
    nothing else links to, or one local model's folder.
  - Refuses, in words, a place outside the cache and the folders of local models (links resolved), a link, a mount, a
    model that is being downloaded, one that a running container has as a bind mount, and files that belong to another
    user. Nothing is changed then, and the task does not fail, so that all hosts' answers can be weighed together.
  - The folder is renamed first, so a delete that is cut short leaves nothing that looks whole; the next finishes it.
attributes:
  check_mode: {support: full, description: Says what would go and what would come back.}
  diff_mode: {support: full, description: Lists the folder and the shared payloads.}
  idempotent: {support: full, description: What is gone is not deleted again.}
options:
  repo: {type: str, description: The Hub repo as C(org/name).}
  path: {type: str, description: The absolute path of a local model.}
  hf_home: {type: path, required: true, description: The Hugging Face cache folder.}
  local_model_dirs:
    type: list
    elements: path
    default: []
    description: Folders of local models.
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Delete a model
  spark.control.weights_delete:
    repo: Qwen/Qwen3.6-35B-A3B-FP8
    hf_home: ~/.cache/huggingface
  register: deleted
  failed_when: deleted.problem is not none
"""

RETURN = r"""
problem: {description: "Why nothing was deleted, or not all of it; null if all is well.", returned: always, type: str}
reason:
  description: >-
    The same as a code, C(repo), C(path), C(link), C(mount), C(downloading), C(serving), C(permission), C(docker),
    C(busy), C(disk), or null.
  returned: always
  type: str
removed:
  description: The model's folder and the shared payloads that went, or would go.
  returned: always
  type: list
  elements: str
  sample: [/home/spark/.cache/huggingface/hub/models--Qwen--Qwen3.6-35B-A3B-FP8]
bytes:
  description: >-
    The room that the file system had given to what went (its blocks), counted file by file. A shared payload that
    something else links to, and a file that has a name elsewhere, do not count.
  returned: always
  type: int
  sample: 37460004864
freed:
  description: >-
    How much more is free on that file system than before, by its own count (statvfs). It differs from RV(bytes) by what
    others wrote or deleted meanwhile, and by what snapshots or the file system itself still hold. 0 in check mode.
  returned: always
  type: int
  sample: 37460004864
kept: {description: How many shared payloads stay because something else links to them., returned: always, type: int}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils.spark_disk import plain
from ansible_collections.spark.control.plugins.module_utils.spark_remove import Delete, Refused, target


def delete(wish: dict, check: bool) -> dict:
    """What RETURN describes, with changed and diff."""
    told = {"changed": False, "problem": None, "reason": None, "removed": [], "bytes": 0, "freed": 0, "kept": 0}
    try:
        what = target(wish["hf_home"], wish["repo"], wish["path"], wish["local_model_dirs"])
        with Delete(what, wish["hf_home"], wish["local_model_dirs"]) as work:
            done = work.preview() if check else work.run()
            told |= {"changed": bool(done["removed"]), "kept": len(work.kept)}
            told |= {key: done[key] for key in ("removed", "bytes", "freed")}
    except Refused as refused:
        return told | {"problem": refused.problem, "reason": refused.reason}
    except OSError as error:
        text = f"{wish['repo'] or wish['path']} could not be deleted: {error.strerror or error}."
        return told | {"changed": True, "problem": plain(text), "reason": "disk"}
    if told["changed"]:
        before = "".join(f"{path}\n" for path in told["removed"])
        told["diff"] = {"before": before, "after": "", "before_header": "on disk", "after_header": "on disk"}
    return told


def main() -> None:
    """Delete, and answer."""
    module = AnsibleModule(
        {
            "repo": {"type": "str"},
            "path": {"type": "str"},
            "hf_home": {"type": "path", "required": True},
            "local_model_dirs": {"type": "list", "elements": "path", "default": []},
        },
        mutually_exclusive=[("repo", "path")],
        required_one_of=[("repo", "path")],
        supports_check_mode=True,
    )
    module.exit_json(**delete(module.params, module.check_mode))


if __name__ == "__main__":
    main()
