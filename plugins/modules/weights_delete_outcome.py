#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin weights_delete_outcome."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_delete_outcome
short_description: Put into words what came of a deletion
description:
  - Puts what the tasks before it registered into one result. Runs on the controller and reads nothing else.
attributes:
  check_mode: {support: full, description: It only computes.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  decision:
    type: dict
    required: true
    description: What M(spark.control.weights_decide) decided; empty where it could not.
  deleted:
    type: str
    required: true
    description: The name of every host's registered M(spark.control.weights_delete).
  card_removed: {type: bool, default: false, description: Whether the inferred recipe was removed.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Put the outcome into words
  spark.control.weights_delete_outcome:
    decision: "{{ decided.decision }}"
    deleted: deleted
  run_once: true
  register: told
"""

RETURN = r"""
result:
  description: The result of delete_weights; its keys are in the role's README.
  returned: always
  type: dict
  sample: {operation: delete_weights, ok: true, changed: true, outcome: deleted, reason: null, field: null,
           message: org/name is deleted from spark1; 35 GB came back., repo: org/name, title: org/name, hosts: [],
           freed: 37460004864, bytes: 37460004864, recipe_removed: null, problems: []}
"""
