#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin of the same name; the work is done on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: recipe_save
short_description: Save a confirmed recipe
description:
  - Writes a recipe file into the first of O(recipe_dirs), in one move and with mode 0644. Its first line says that it
    was inferred, when, from what, and the hash of what follows.
  - Never over a file that a person wrote, or changed since; never where another folder has a recipe of that name.
  - What is not valid is answered as RV(result) with C(result.problems), and nothing is changed.
  - Runs on the controller and touches no host.
options:
  model: {type: str, required: true, description: "Name of the model from then on, which its file gets."}
  recipe: {type: dict, required: true, description: "The fields of eugr's format, version 1."}
  recipe_dirs: {type: list, elements: path, required: true, description: Folders with recipe files.}
  beside_inventory:
    description:
      - Save it into C(recipes) beside the inventory in use, which is made if need be, and not into the first of
        O(recipe_dirs).
      - Refused for several inventories, a list of hosts, a folder, a script and a plugin's configuration.
    type: bool
    default: false
attributes:
  action: {support: full, description: Runs on the controller.}
  check_mode: {support: full, description: Says whether it would be written.}
  diff_mode: {support: full, description: Shows the file before and after.}
  idempotent: {support: full, description: The same recipe again changes nothing.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Save the recipe
  spark.control.recipe_save:
    model: my-finetune
    recipe_dirs: "{{ recipe_dirs }}"
    recipe:
      name: My fine-tune
      model: /srv/models/my-finetune
      container: vllm-node
      solo_only: true
      command: vllm serve /srv/models/my-finetune --port {port} --host {host}
"""

RETURN = r"""
result:
  description: >-
    C({operation, ok, changed, outcome, message, model, path, text, reason, problems}), outcome being V(saved),
    V(preview), V(unchanged) or V(refused), problems C([{field, message}]) and reason V(bad_recipe), V(taken),
    V(not_writable) or null.
  returned: always
  type: dict
"""
