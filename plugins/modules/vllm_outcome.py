#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin vllm_outcome."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_outcome
short_description: Put what came of a swap or a stop into one result
description: Reads what the tasks before it registered, on the controller, and never fails because they did.
attributes:
  check_mode: {support: full, description: "It only computes, and calls its result a preview."}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  operation: {type: str, choices: [swap, stop_model, tidy_swap], required: true, description: What was asked for.}
  head: {type: str, required: true, description: The head Spark.}
  seen: {type: str, required: true, description: The name of every host's registered M(spark.control.spark_probe).}
  stopped: {type: str, required: true, description: The name of every host's registered M(spark.control.vllm_stop).}
  attempt: {type: str, required: true, description: 'The name of the fact that a rollback keeps the first try in.'}
  planned: {type: dict, default: {}, description: The registered result of M(spark.control.recipe_plan).}
  decision: {type: dict, default: {}, description: The decision of M(spark.control.vllm_decide).}
  leased: {type: dict, default: {}, description: The registered result of M(spark.control.gpu_lease).}
  launched: {type: dict, default: {}, description: The registered result of M(spark.control.vllm_launch).}
  answer: {type: dict, default: {}, description: The registered result of M(spark.control.vllm_wait).}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Put the outcome into words
  spark.control.vllm_outcome:
    operation: swap
    head: spark1
    seen: spark_seen
    stopped: __vllm_stopped
    attempt: __vllm_attempt
    planned: "{{ planned }}"
    decision: "{{ decided.decision }}"
  run_once: true
  register: outcome
"""

RETURN = r"""
result: {description: The result of the playbook; its keys are in the role's README., returned: always, type: dict}
"""
