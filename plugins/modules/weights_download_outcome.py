#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin weights_download_outcome."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_download_outcome
short_description: Put into words what came of a download
description:
  - Puts what the tasks before it registered into one result. Runs on the controller and reads nothing else.
attributes:
  check_mode: {support: full, description: It only computes.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  repo: {type: str, required: true, description: "The Hub repo, C(org/name)."}
  revision: {type: str, default: main, description: "A branch, tag or commit."}
  host: {type: str, required: true, description: The Spark that it was about.}
  started:
    type: str
    required: true
    description:
      - The name of every host's registered M(spark.control.weights_download_start), or after a cancel
        M(spark.control.weights_download_stop).
  watched: {type: str, description: The name of every host's registered M(spark.control.weights_download_watch).}
  copied: {type: dict, default: {}, description: The result of a copy to other Sparks.}
  copy_stopped: {type: str, description: The name of every host's registered M(spark.control.weights_copy_stop).}
  operation: {type: str, default: download_weights, description: The result's operation.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Put the outcome into words
  spark.control.weights_download_outcome:
    repo: Qwen/Qwen3.6-35B-A3B-FP8
    host: spark1
    started: started
    watched: download
  run_once: true
  register: told
"""

RETURN = r"""
result:
  description: The result of download_weights or tidy_download_weights; its keys are in the role's README.
  returned: always
  type: dict
  sample: {operation: download_weights, ok: true, changed: true, outcome: downloaded, reason: null, repo: org/name,
           revision: main, host: spark1, weights: {}, progress: null, problems: [], log_tail: [], message: "spark1: …"}
"""
