#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin of the same name; the work is done on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: recipe_plan
short_description: Plan a model's launch from its recipe
description:
  - Finds a launch recipe by name, validates it, and renders the exact launch for the Sparks that there are.
  - Reads both formats of the field, eugr's version 1 and sparkrun's version 2.
  - Without O(model) it lists every recipe; one broken file is an entry with an error and hides no other.
  - Runs on the controller and touches no host.
options:
  model:
    description: Name of the model, the stem of its recipe file. Without it the recipes are listed.
    type: str
  recipe_dirs:
    description: Folders with recipe files. The first that has a name wins. Folders inside them are not read.
    type: list
    elements: path
    required: true
  nodes:
    description: The Sparks that vLLM may use, the head first.
    type: list
    elements: dict
    default: []
    suboptions:
      host:
        description: Inventory name.
        type: str
        required: true
      address:
        description: Address on the link between the Sparks.
        type: str
        required: true
  port:
    description: Port that every model is served on, whatever its recipe says.
    type: int
    default: 8888
  container:
    description: Name of the container.
    type: str
    default: vllm_node
attributes:
  action:
    support: full
    description: Runs on the controller.
  check_mode:
    support: full
    description: Only reads files, so it does the same in check mode.
  diff_mode:
    support: none
    description: Changes nothing, so there is nothing to show.
  idempotent:
    support: full
    description: The same recipe and Sparks give the same plan and digest.
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Plan the launch of Qwen3.6
  spark.control.recipe_plan:
    model: qwen3.6-35b-a3b
    recipe_dirs: "{{ recipe_dirs }}"
    nodes:
      - host: spark1
        address: 192.168.177.11
  register: __recipe_planned

- name: List the recipes
  spark.control.recipe_plan:
    recipe_dirs: "{{ recipe_dirs }}"
  register: __recipe_listed
"""

RETURN = r"""
weights:
  description: What the plan needs on the disks of its nodes, C([{repo, revision}]); a local model by its path.
  returned: success, with O(model)
  type: list
  elements: dict
plan:
  description: The launch, when O(model) is given and its recipe can be used.
  returned: success, with O(model)
  type: dict
  contains:
    model:
      description: Name of the recipe.
      type: str
    title:
      description: What people call the model.
      type: str
    description:
      description: One line about it.
      type: str
    source:
      description: Path of the recipe file.
      type: str
    recipe_version:
      description: V(1) or V(2).
      type: str
    repo:
      description: Hugging Face repository of the weights, or null for a path.
      type: str
    revision:
      description: Its revision, or null.
      type: str
    served_name:
      description: First name that the API answers to.
      type: str
    image:
      description: Docker image.
      type: str
    mode:
      description: V(solo) or V(cluster).
      type: str
    nodes:
      description: The Sparks that it uses, the head first.
      type: list
      elements: dict
    env:
      description: Environment variables.
      type: dict
    mods:
      description: Folders below the launcher's that are applied first.
      type: list
      elements: str
    argv:
      description: The command's words, or null.
      type: list
      elements: str
    script:
      description: The command as a bash script, or null. Exactly one of C(plan.argv) and C(plan.script) is set.
      type: str
    port:
      description: Port that it is served on.
      type: int
    container:
      description: Name of the container.
      type: str
    mounts:
      description:
        - Folders of each Spark that the container sees, C({source, target, read_only}); one where the recipe's model
          is a folder rather than a repository.
      type: list
      elements: dict
    tensor_parallel:
      description: Number of Sparks that share each layer.
      type: int
    pipeline_parallel:
      description: Number of groups of Sparks that share the layers.
      type: int
    vision:
      description: Whether it takes images.
      type: bool
    quantization:
      description: How its weights are quantized, or null.
      type: str
    memory:
      description:
        - What it says about memory, null where it says nothing. V(gpu_memory_utilization) is a share,
          V(gpu_memory_gb) GB, V(max_model_len) tokens, V(max_num_seqs) requests, V(weights_bytes) and
          V(kv_bytes_per_token) bytes of the whole model. V(kv_verified) is true for an author's own figure.
          V(context_auto) is true where vLLM fits the context to the memory; V(kv_cache_dtype) and V(draft_model) are
          as its flags have them.
      type: dict
    warnings:
      description: What the recipe says that is not followed.
      type: list
      elements: str
    digest:
      description: sha256 over all that changes the launch.
      type: str
recipes:
  description:
    - One entry a recipe file, with V(name), V(title), V(description), V(repo), V(revision), V(served_name), V(image),
      V(mode), V(min_nodes), V(max_nodes), V(vision), V(quantization), V(source), V(error), and
      V(placement) where there are Sparks enough for it.
  returned: without O(model)
  type: list
  elements: dict
reason:
  description: V(unknown_model), V(broken_recipe), V(too_few_sparks), or null.
  returned: always
  type: str
messages:
  description: One message a fault, each with the file, the field and what was expected.
  returned: failure
  type: list
  elements: str
msg:
  description: One sentence for a person.
  returned: always
  type: str
"""
