#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin weights_decide."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_decide
short_description: Decide whether a model may be deleted
description:
  - Runs on the controller over what every host registered, and the recipes there.
  - One Spark's refusal is everybody's, so that nothing is deleted anywhere before all agree.
attributes:
  check_mode: {support: full, description: It only computes.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  repo: {type: str, description: The Hub repo as C(org/name).}
  path: {type: str, description: The absolute path of a local model.}
  hosts: {type: list, elements: str, required: true, description: The Sparks to delete it from.}
  sparks: {type: list, elements: str, required: true, description: All Sparks.}
  head: {type: str, required: true, description: The head Spark.}
  recipes:
    type: list
    elements: dict
    default: []
    description: What M(spark.control.recipe_plan) read without a model.
  recipe_dirs:
    type: list
    elements: str
    default: []
    description: Folders with recipes; those that were inferred are in the first.
  seen: {type: str, required: true, description: The name of every host's registered M(spark.control.spark_probe).}
  looked:
    type: str
    required: true
    description: The name of every host's registered M(spark.control.weights_delete) in check mode.
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Decide
  spark.control.weights_decide:
    repo: Qwen/Qwen3.6-35B-A3B-FP8
    hosts: [spark1]
    sparks: [spark1, spark2]
    head: spark1
    seen: spark_seen
    looked: looked
  run_once: true
  register: decided
"""

RETURN = r"""
decision:
  description: Where it goes, or why not.
  returned: always
  type: dict
  sample: {title: Qwen/Qwen3.6-35B-A3B-FP8, repo: Qwen/Qwen3.6-35B-A3B-FP8, problems: [], hosts: [spark1],
           asked: [spark1], bytes: {spark1: 37460004864}, elsewhere: [], card: null, card_kept: false}
"""
