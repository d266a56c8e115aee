#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: stop the download of a model."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_download_stop
short_description: Stop downloading a model's weights
description:
  - Removes the container. Files that are whole stay, so that a later download takes it up there.
attributes:
  check_mode: {support: full, description: Says what would be stopped.}
  diff_mode: {support: none, description: RV(message) says it all.}
  idempotent: {support: full, description: Where no download runs nothing is changed.}
options:
  repo: {type: str, required: true, description: "The Hub repo, C(org/name)."}
  revision: {type: str, default: main, description: "A branch, tag or commit."}
  hf_home: {type: path, required: true, description: The Hugging Face cache folder.}
  state_dir: {type: path, required: true, description: "Where the record is and, while it is needed, the token."}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Stop the download of Qwen3.6
  spark.control.weights_download_stop:
    repo: Qwen/Qwen3.6-35B-A3B-FP8
    hf_home: ~/.cache/huggingface
    state_dir: ~/.spark-control
"""

RETURN = r"""
done: {description: Whether nothing runs any more., returned: always, type: bool}
message: {description: "What was stopped, and what stays, as a sentence.", returned: always, type: str,
          sample: no download of Qwen/Qwen3.6-35B-A3B-FP8 was running}
problem: {description: What went wrong., returned: when something did, type: dict,
          sample: {code: disk_full, message: "org/name needs 61 GB more, and 12 GB are free in /home/x."}}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils import spark_docker, spark_download, spark_transfer
from ansible_collections.spark.control.plugins.module_utils.spark_download import Download
from ansible_collections.spark.control.plugins.module_utils.spark_transfer import amount


def stop(download: Download, check: bool) -> dict:
    """Remove the container. What came whole stays."""
    there = spark_docker.container(download.container)
    record = download.record()
    if not there and not record:
        return {"changed": False, "done": True, "message": f"no download of {download.repo} was running"}
    if not check:
        with spark_transfer.alone(download.state_dir):
            download.clear()
    kept = ""
    if record:
        have = amount(download.bytes_there(record["files"]))
        kept = f"; {have} of {amount(record['total'])} are there and stay, and the next download takes it up"
    return {"changed": True, "done": True, "message": f"the download of {download.repo} was stopped{kept}"}


def main() -> None:
    """Stop, and answer."""
    module = AnsibleModule(
        {
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
            "hf_home": {"type": "path", "required": True},
            "state_dir": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    spark_download.answer(module, lambda: stop(Download(module.params), module.check_mode))


if __name__ == "__main__":
    main()
