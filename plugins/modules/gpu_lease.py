#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: take, renew, read or give back the lease on the GPUs."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gpu_lease
short_description: Take or give back the lease on the GPUs
description:
  - One lease guards the GPUs of the cluster, a file on the head Spark that is changed under a lock.
  - It expires by the head's clock, so that a holder that crashed does not keep it.
attributes:
  check_mode: {support: full, description: Says what would happen and leaves the lease as it is.}
  diff_mode: {support: full, description: Shows the holder before and after.}
  idempotent: {support: full, description: The same lease taken again is renewed; given back twice changes nothing.}
options:
  state:
    type: str
    choices: [present, absent]
    default: present
    description: Whether the lease is to be held or given back.
  state_dir: {type: path, required: true, description: The folder on the head Spark that holds lease.json.}
  id: {type: str, description: "Who holds it, uniquely; taking it again with the same id renews it."}
  holder: {type: str, description: "Who holds it, in words for a person."}
  purpose: {type: str, default: '', description: "What for, in words for a person."}
  seconds: {type: float, default: 120, description: How long it lasts from now.}
  token_hash:
    type: str
    description: SHA-256, in hexadecimal, of a token whose owner may give the lease back.
  run:
    type: str
    description:
      - Which run of ansible-playbook holds it, if one does, so that its end is seen.
      - A lease of a run that has ended on the machine of the present one is replaced.
  supersedes:
    type: list
    elements: str
    default: []
    description: Ids of holders that are known to be dead; their lease is replaced.
  force: {type: bool, default: false, description: Take or give back somebody else's lease.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Reserve the GPUs
  spark.control.gpu_lease:
    state_dir: ~/.spark-control
    id: 20261122-080000-ab12
    holder: swap
    purpose: swap to Gemma 4

- name: Give the GPUs free
  spark.control.gpu_lease:
    state: absent
    state_dir: ~/.spark-control
    id: 20261122-080000-ab12
"""

RETURN = r"""
lease:
  description: The lease in force afterwards, or null.
  returned: success
  type: dict
  sample: {id: 20261122-080000-ab12, holder: swap, purpose: swap to Gemma 4, taken: 1795000000.0,
           expires: 1795000120.0, token_hash: null, run: null, seconds_left: 120.0, seconds_held: 0.0}
reason:
  description: C(leased) where somebody else holds it.
  returned: failure
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils import spark_lease


def main() -> None:
    """Read the wish, and do it or say who holds the lease."""
    module = AnsibleModule(
        {
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "state_dir": {"type": "path", "required": True},
            "id": {"type": "str"},
            "holder": {"type": "str"},
            "purpose": {"type": "str", "default": ""},
            "seconds": {"type": "float", "default": 120},
            # A hash cannot be turned back into its token, so it may stand in a log.
            "token_hash": {"type": "str", "no_log": False},
            "run": {"type": "str"},
            "supersedes": {"type": "list", "elements": "str", "default": []},
            "force": {"type": "bool", "default": False},
        },
        required_if=[
            ("state", "present", ("id", "holder")),
            ("state", "absent", ("id", "token_hash", "force"), True),
        ],
        supports_check_mode=True,
    )
    wish = module.params
    before = spark_lease.read(wish["state_dir"])
    try:
        after = settle(wish, before, module.check_mode)
    except spark_lease.Leased as refusal:
        module.fail_json(msg=str(refusal), reason="leased", lease=refusal.lease)
    except OSError as error:
        module.fail_json(msg=f"The lease cannot be kept in {wish['state_dir']}: {error.strerror}", reason="lease")
    module.exit_json(
        changed=(before or {}).get("id") != (after or {}).get("id"),
        lease=after,
        diff={"before": told(before), "after": told(after)},
    )


def told(lease: dict | None) -> str:
    """A lease as a line of the diff."""
    return f"reserved by {lease['holder']}\n" if lease else ""


def settle(wish: dict, before: dict | None, check: bool) -> dict | None:
    """Take or give back, or in check mode judge alone; returns the lease in force afterwards."""
    folder = wish["state_dir"]
    wanted = {field: wish[field] for field in ("id", "holder", "purpose", "token_hash", "run")}
    if wish["state"] == "absent":
        theirs = (wish["id"], wish["token_hash"], wish["force"])
        if check:
            return spark_lease.after_release(before, *theirs)
        spark_lease.release(folder, *theirs)
    else:
        asked = (wanted, wish["seconds"], wish["supersedes"], wish["force"])
        if check:
            return spark_lease.after_taking(before, *asked)
        spark_lease.take(folder, *asked)
    return spark_lease.read(folder)


if __name__ == "__main__":
    main()
