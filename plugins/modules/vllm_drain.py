#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: let the requests in flight finish before a model is stopped."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_drain
short_description: Wait until a vLLM has no request in flight
description: Reads the server's own count of running and waiting requests until it is nought, or the time is up.
attributes:
  check_mode: {support: full, description: Does not wait.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  address: {type: str, required: true, description: The IP address of the head Spark's vLLM.}
  port: {type: int, required: true, description: Its port.}
  seconds: {type: float, default: 60, description: The longest that it waits.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Let the requests in flight finish
  spark.control.vllm_drain:
    address: 192.168.1.11
    port: 8888
"""

RETURN = r"""
in_flight: {description: Requests that were still in flight., returned: always, type: int, sample: 0}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils.spark_serving import Vllm, drain


def main() -> None:
    """Wait, and say how many were left."""
    module = AnsibleModule(
        {
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "seconds": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    vllm = Vllm(module.params["address"], module.params["port"])
    left = drain(vllm, 0 if module.check_mode else module.params["seconds"])
    module.exit_json(changed=False, in_flight=left)


if __name__ == "__main__":
    main()
