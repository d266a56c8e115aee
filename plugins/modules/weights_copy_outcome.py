#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin weights_copy_outcome."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_copy_outcome
short_description: Put into words what came of a copy
description:
  - Puts what the tasks before it registered into one result. Runs on the controller and reads nothing else.
  - With O(stopped) it is the result of a cancel, without it that of a copy.
attributes:
  check_mode: {support: full, description: It only computes.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  name: {type: str, required: true, description: "A Hub repo, C(org/name), or the absolute path of a local model."}
  verify: {type: str, choices: [size, hash], default: size, description: How what arrived is compared.}
  planned: {type: dict, default: {}, description: The registered M(spark.control.weights_copy_plan).}
  arrived: {type: dict, default: {}, description: The registered M(spark.control.weights_copy_arrived).}
  watched: {type: str, description: The name of every host's registered M(spark.control.weights_copy_watch).}
  settled: {type: str, description: The name of every host's registered M(spark.control.weights_copy_settle).}
  stopped: {type: str, description: The name of every host's registered M(spark.control.weights_copy_stop).}
  operation: {type: str, default: copy_weights, description: The result's operation.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Put the outcome of the copy into words
  spark.control.weights_copy_outcome:
    name: Qwen/Qwen3.6-35B-A3B-FP8
    planned: "{{ planned }}"
    arrived: "{{ arrived }}"
    watched: watched
    settled: settled
  run_once: true
  register: told
"""

RETURN = r"""
result:
  description: The result of copy_weights or tidy_copy_weights; its keys are in the role's README.
  returned: always
  type: dict
  sample: {operation: copy_weights, ok: true, changed: true, outcome: copied, reason: null, message: org/name is copied,
           name: org/name, source: spark1, bytes: 37000000000, verified: size, sparks: [], problems: [], log_tail: []}
"""
