#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin spark_options."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: spark_options
short_description: Look at the options before anything else
description:
  - Ansible takes any extra variable, so C(-e forse=true) would be passed over in silence. This fails where one is very
    like an option of the role's entry point and is none.
  - Others are left alone, because whoever starts a playbook may add some of their own.
  - Then it validates the values, as Ansible does before a role's tasks; a playbook that begins with this sets
    C(rolespec_validate) to false for its role.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  role: {type: str, required: true, description: A role of this collection.}
  entry: {type: str, default: main, description: Its entry point; the options are those of its argument specs.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: See that every option is one
  spark.control.spark_options:
    role: vllm
    entry: swap
  run_once: true
"""

RETURN = r"""
msg:
  description: Which variable is no option, and which was meant; or what is wrong with which option.
  returned: failure
  type: str
  sample: There is no option forse; did you mean force?
"""
