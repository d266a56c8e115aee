#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin of the same name; the work is done on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: recipe_suggest
short_description: Suggest how to launch a model that has no recipe
description:
  - Infers launch flags from what a scan found in the model's own files, for the Sparks that there are.
  - Every flag says which file and key it comes from, why, how sure it is, and what to look out for.
  - Runs on the controller and touches no host.
options:
  model: {type: str, required: true, description: "The model, C(org/name) or a local model's absolute path."}
  seen:
    type: str
    required: true
    description: The name under which every host registered M(spark.control.spark_probe)'s result.
  head: {type: str, required: true, description: The head Spark.}
  recipe_dirs:
    type: list
    elements: path
    default: []
    description: Folders with recipe files, whose names are taken.
  port: {type: int, default: 8888, description: Port that every model is served on.}
  nodes: {type: int, description: "On how many Sparks, 1, 2, 4 or 8; without it the fewest that do."}
attributes:
  action: {support: full, description: Runs on the controller.}
  check_mode: {support: full, description: It only computes.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Suggest how to launch it
  spark.control.recipe_suggest:
    model: org/name
    seen: spark_seen
    head: spark1
    recipe_dirs: "{{ recipe_dirs }}"
  run_once: true
  register: suggested
"""

RETURN = r"""
result:
  description:
    - C({operation, ok, changed, model, reason, message, suggestion}). Without a suggestion C(ok) is false and
      C(message) says why; reason is V(not_whole), V(no_suggestion) or null.
    - The suggestion is C({name, title, repo, path, mode, nodes, confidence, flags, left_out, env, warnings, reason,
      recipe, text, fit}).
    - C(flags) and C(left_out) are C([{flag, value, source, reason, confidence, warning, words}]); source is C({file,
      key}) or null, value null for a flag without one, confidence V(high), V(medium) or V(low), words the
      flag's part of the recipe's command, whose value stands in its defaults.
    - C(recipe) is what M(spark.control.recipe_save) takes, C(text) its YAML, C(fit) the sum for each Spark.
  returned: always
  type: dict
"""
