#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: watch the download of a model, one bounded stretch."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_download_watch
short_description: Watch a model's weights being downloaded
description:
  - Is meant for C(until). One call watches until there is news, at most O(hold_seconds), and at the end sees that
    every file is there in its full size.
  - What goes wrong is answered as RV(problem) rather than as a failed task, because C(until) retries failures.
attributes:
  check_mode: {support: full, description: "It only looks, and removes the container that has ended."}
  diff_mode: {support: none, description: M(spark.control.weights_download_start) lists the files.}
  idempotent: {support: full, description: Once the weights are whole it says so again.}
options:
  repo: {type: str, required: true, description: "The Hub repo, C(org/name)."}
  revision: {type: str, default: main, description: "A branch, tag or commit."}
  hf_home: {type: path, required: true, description: The Hugging Face cache folder.}
  state_dir: {type: path, required: true, description: "Where the record is and, while it is needed, the token."}
  hold_seconds: {type: float, default: 10, description: The longest that one call watches.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Download Qwen3.6
  spark.control.weights_download_watch:
    repo: Qwen/Qwen3.6-35B-A3B-FP8
    hf_home: ~/.cache/huggingface
    state_dir: ~/.spark-control
  register: download
  until: download.done or download.problem is defined
  retries: 100000
  delay: 0
"""

RETURN = r"""
done: {description: Whether the weights are whole., returned: always, type: bool}
message: {description: Where it is as a sentence., returned: always, type: str,
          sample: "12 of 61 GB, 84 MB/s, about 10 min left"}
phase: {description: What it does., returned: while it runs, type: str, sample: downloading}
percent: {description: How far it is., returned: unless it went wrong, type: int, sample: 19}
seconds: {description: Seconds since it began., returned: while it runs, type: float}
progress: {description: The figures in bytes., returned: while it runs, type: dict,
           sample: {done: 12884901888, total: 65498251264, percent: 19, speed: 88080384}}
weights: {description: What came of it., returned: when the weights are whole and the Hub was asked, type: dict,
          sample: {repo: Qwen/Qwen3.6-35B-A3B-FP8, revision: main, commit: 0123abcd, bytes: 37000000000, files: 14,
                   path: /home/…, state: complete}}
log_tail: {description: The last lines of its log., returned: when it ended by itself and not well, type: list,
           elements: str}
problem: {description: What went wrong., returned: when something did, type: dict,
          sample: {code: disk_full, message: "org/name needs 61 GB more, and 12 GB are free in /home/x."}}
"""

import re
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils import spark_docker, spark_download, spark_transfer
from ansible_collections.spark.control.plugins.module_utils.spark_transfer import Trouble, amount

_LOOK_EVERY = 0.5
# What hf says when it fails: (a sign in its log, our code, our words).
_SAYINGS = (
    (r"No space left on device|Not enough free disk space|Disk quota exceeded", "disk_full", "the disk is full"),
    (r"GatedRepo|gated repo", "gated", "the repo is gated and the token has no access"),
    (r"Invalid credentials|401 (Client Error|Unauthorized)", "token_refused", "the Hub refused the token"),
    (r"RepositoryNotFound|Repository Not Found", "not_found", "the Hub has no such repo any more"),
    (r"RevisionNotFound|Revision Not Found", "no_revision", "the Hub has no such revision any more"),
    (r"Permission ?[Dd]enied", "not_writable", "the cache folder cannot be written"),
    (r"Connect(ion)?Error|Timeout|timed out|LocalEntryNotFound|RemoteProtocol|Name or service", "hub_unreachable",
     "the connection to the Hub broke off"),
    (r'"hf".*(not found|no such file)', "no_hf", "its image has no hf (huggingface_hub)"),
)  # fmt: skip


class Watch(spark_download.Download):
    """A download that runs, or has ended since the last look."""

    def watch(self, seconds: float) -> dict:
        """Watch until there is news, at most that long."""
        until = time.monotonic() + seconds
        first = None
        while True:
            record = self.record()
            there = spark_docker.container(self.container)
            if record is None or there is None:
                return self.gone()
            if not there["running"]:
                return self.ended(record)
            now = self.state(record)
            spark_transfer.write_record(self.state_dir, self.id, record)
            first = first or now
            if now["percent"] >= first["percent"] + 2 or time.monotonic() >= until:
                return now
            time.sleep(_LOOK_EVERY)

    def gone(self) -> dict:
        """Somebody else saw to its end: another run that watched it too, or one that stopped it."""
        here = self.here()
        if here["state"] != "complete":
            raise Trouble("gone", f"The download of {self.repo} was stopped by somebody else.")
        message = f"{self.repo} is downloaded: {amount(here['bytes'])} in {here['files']} files"
        return {"done": True, "message": message, "percent": 100}

    def ended(self, record: dict) -> dict:
        """hf is done: is everything there?"""
        code = spark_docker.docker("inspect", "--format", "{{.State.ExitCode}}", self.container).stdout.strip()
        log = spark_docker.logs(self.container, tail=200).decode(errors="replace")
        missing = [file for file in record["files"] if not self.in_place(file, record["commit"])]
        self.clear()
        if not missing:
            return self.finished(record, changed=True) | {"seconds": round(time.time() - record["started"], 1)}
        kept = f"{amount(self.bytes_there(record['files']))} of {amount(record['total'])} are there and stay"
        told = next((row[1:] for row in _SAYINGS if re.search(row[0], log)), None)
        if code == b"0":
            told = (
                "incomplete",
                f"hf ended well, but {len(missing)} files are missing, {missing[0]['path']} the first",
            )
        code_word, words = told or ("failed", f"hf failed (exit code {code.decode()[:10]})")
        message = f"The download of {self.repo} stopped: {words}; {kept}."
        problem = {"code": code_word, "message": message}
        return {"done": False, "problem": problem, "message": message, "log_tail": spark_transfer.lines(log)}


def main() -> None:
    """Watch, and answer."""
    module = AnsibleModule(
        {
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
            "hf_home": {"type": "path", "required": True},
            "state_dir": {"type": "path", "required": True},
            "hold_seconds": {"type": "float", "default": 10},
        },
        supports_check_mode=True,
    )
    wish = module.params
    spark_download.answer(module, lambda: Watch(wish).watch(wish["hold_seconds"]))


if __name__ == "__main__":
    main()
