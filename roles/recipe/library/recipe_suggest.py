#!/usr/bin/python
"""Documentation of the action plugin of the same name; the work is done on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: recipe_suggest
short_description: Suggest how to launch models that have no recipe
description:
  - Infers launch flags from what a scan found in each model's own files, for the Sparks that there are.
  - Every flag says which file and key it comes from, why, how sure it is, and what to look out for.
  - Runs on the controller and touches no host.
options:
  entries: {type: list, elements: dict, required: true, description: Models as a scan tells them.}
  sparks:
    type: list
    elements: dict
    default: []
    description: C({host, total, available, held}) of each Spark that vLLM may use, in bytes, the head first.
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
author: [Spark Control]
"""

EXAMPLES = r"""
- name: Suggest how to launch it
  recipe_suggest:
    entries: "{{ scan.models }}"
    sparks:
      - {host: spark1, total: 130567634944, available: 123000000000, held: 0}
    recipe_dirs: "{{ recipe_dirs }}"
  register: suggested
"""

RETURN = r"""
suggestions:
  description:
    - One a model, in order, C({name, title, repo, path, mode, nodes, confidence, flags, left_out, env, warnings,
      reason, recipe, text, fit}). Without a suggestion C(recipe) is null and C(reason) says why.
    - C(flags) and C(left_out) are C([{flag, value, source, reason, confidence, warning, words}]); source is C({file,
      key}) or null, value null for a flag without one, confidence V(high), V(medium) or V(low), words the
      flag's part of the recipe's command, whose value stands in its defaults.
    - C(recipe) is what M(recipe_save) takes, C(text) its YAML, C(fit) the sum for each Spark.
  returned: always
  type: list
  elements: dict
"""
