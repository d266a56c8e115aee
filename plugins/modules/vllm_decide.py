#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin vllm_decide."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_decide
short_description: Decide what a swap or a stop has to change
description:
  - Compares a plan with what M(spark.control.spark_probe) found on every Spark. Runs on the controller and reads
    nothing else.
  - A plan that cannot be carried out is an answer with C(decision.problems), not a failed task.
attributes:
  check_mode: {support: full, description: It only computes.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  plan: {type: dict, description: The plan of M(spark.control.recipe_plan); without it everything is to stop.}
  seen: {type: str, required: true, description: The name of every host's registered M(spark.control.spark_probe).}
  head: {type: str, required: true, description: The head Spark.}
  lease: {type: str, description: 'The id under which we take the lease; a new one without it.'}
  holder: {type: str, description: 'Who takes it, in words for a person; without it, user@machine of who runs this.'}
  supersedes: {type: list, elements: str, default: [], description: Holders of the lease that are known to be dead.}
  force: {type: bool, default: false, description: Go ahead against somebody else's lease.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Decide what has to change
  spark.control.vllm_decide:
    plan: "{{ planned.plan }}"
    head: "{{ groups.vllm[0] }}"
    seen: seen
  run_once: true
  register: decided
"""

RETURN = r"""
decision:
  description:
    - C(changes) or C(unchanged), or neither where there are C(problems) ([{host, code, message}]); C(reason) is the
      first one's code. C(previous) is what serves now, with its C(plan) where it can be put back. C(stops) is what a
      person is told will stop. C(hosts) are the Sparks that hold a model or are to get one. C(needs) is the
      memory to wait for, in bytes by host. C(arithmetic) is whether it fits, a row a node. C(lease_id) is the id under
      which the lease is to be taken, C(holder) who takes it, C(run) which run does, C(supersedes) the ids of holders
      that are known to be dead, which are those given and a run on this machine that is over. C(left_over) is whether
      one of these holds it, C(run_holds) whether a run rather than a reservation does.
  returned: always
  type: dict
"""
