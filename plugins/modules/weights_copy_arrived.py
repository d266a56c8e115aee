#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin weights_copy_arrived."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_copy_arrived
short_description: See which copies of a model arrived
description:
  - Compares the plan with how each copy ended. Runs on the controller and reads nothing else.
attributes:
  check_mode: {support: full, description: It only computes.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  plan: {type: dict, required: true, description: What M(spark.control.weights_copy_plan) decided.}
  started:
    type: str
    required: true
    description: The name of every host's registered M(spark.control.weights_copy_start).
  watched:
    type: str
    required: true
    description: The name of every host's registered M(spark.control.weights_copy_watch).
  hashed:
    type: str
    required: true
    description: The name of every host's registered M(spark.control.weights_copy_hash).
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: See what arrived
  spark.control.weights_copy_arrived:
    plan: "{{ planned.plan }}"
    started: started
    watched: watched
    hashed: hashed
  run_once: true
  register: arrived
"""

RETURN = r"""
hosts: {description: The targets at which to verify., returned: always, type: list, elements: str, sample: [spark2]}
manifest: {description: "What the model consists of, with the hashes that were read.", returned: always, type: dict}
problems: {description: By target why its copy did not arrive., returned: always, type: dict,
           sample: {spark3: {code: link_down, message: "The copy of org/name to spark3 failed: …"}}}
"""
