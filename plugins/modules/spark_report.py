#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin spark_report."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: spark_report
short_description: Put every Spark's probe into one result
description: Runs on the controller over what every host registered from M(spark.control.spark_probe).
attributes:
  check_mode: {support: full, description: It only computes.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  seen:
    type: str
    required: true
    description: The name under which every host registered M(spark.control.spark_probe)'s result.
  head: {type: str, required: true, description: The head Spark.}
  recipes:
    type: list
    elements: dict
    default: []
    description: What M(spark.control.recipe_plan) read without a model.
  recipe_dirs: {type: list, elements: str, default: [], description: Where it read them.}
  operation: {type: str, choices: [probe, menu], default: probe, description: "Everything, or the models alone."}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Put together what was seen
  spark.control.spark_report:
    seen: spark_seen
    head: spark1
  run_once: true
  register: report
"""

RETURN = r"""
result:
  description: The result of probe.yml or menu.yml; the keys are in the READMEs of this role and of the weights role.
  returned: always
  type: dict
"""
