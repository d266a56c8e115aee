#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin weights_copy_plan."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_copy_plan
short_description: Decide who sends a model to whom
description:
  - Compares what M(spark.control.weights_copy_look) found on every Spark. Runs on the controller and reads
    nothing else.
  - The Spark that has a key for the other runs rsync, be it the source (it pushes) or the target (it pulls).
  - A Spark that cannot get the model has its problem in C(rows); the others go on. Where nobody can, RV(problem)
    says why.
attributes:
  check_mode: {support: full, description: It only computes.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  name: {type: str, required: true, description: "A Hub repo, C(org/name), or the absolute path of a local model."}
  looked:
    type: str
    required: true
    description: The name of every host's registered M(spark.control.weights_copy_look).
  source: {type: str, description: The Spark to copy from; one that has it whole without it.}
  to: {type: list, elements: str, default: [], description: The Sparks to copy to; all others without it.}
  verify: {type: str, choices: [size, hash], default: size, description: How what arrived is compared.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Decide what has to be copied
  spark.control.weights_copy_plan:
    name: Qwen/Qwen3.6-35B-A3B-FP8
    looked: looked
    to: [spark2]
  run_once: true
  register: planned
"""

RETURN = r"""
plan:
  description:
    - Who sends what to whom. C(copies) are what the Sparks in C(runners) run, C(targets) where it is then verified, and
      C(rows) by target whether it is whole already, what is wrong, and how many bytes come. Empty where nobody can.
  returned: always
  type: dict
  sample: {name: org/name, source: spark1, manifest: {}, copies: [], runners: [spark1], targets: [spark2],
           rows: {spark2: {unchanged: false, problem: null, bytes: 37000000000}}}
message: {description: What was done., returned: always, type: str, sample: decided}
problem: {description: Why nothing can be copied., returned: when it cannot, type: dict,
          sample: {code: no_host, message: There is no Spark nope that serves models.}}
"""
