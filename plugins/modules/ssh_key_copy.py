#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin ssh_key_copy."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ssh_key_copy
short_description: Let the controller's key in to a host
description:
  - Runs on the controller. Tries the key; where it is not let in yet, logs in with a password and adds it.
  - The host's key is pinned at the first contact, once the host let us in. A host key that differs from the one that is
    trusted, or from the fingerprint that was given, is refused before a password is sent.
  - The password goes to ssh through its environment (C(SSH_ASKPASS)), in no argument list, and comes back in no result.
  - A refusal is an answer with RV(ok=false) and RV(reason), not a failed task, so that every host gets its turn.
attributes:
  check_mode: {support: full, description: Tries the key and pins and adds nothing.}
  diff_mode: {support: full, description: Shows the public key and the host key that are added.}
  idempotent: {support: full, description: A key that is let in is not added again.}
options:
  address: {type: str, required: true, description: The host's IP address.}
  port: {type: int, default: 22, description: Its sshd's port.}
  user: {type: str, description: The user there; by default the one who runs this.}
  key_file: {type: path, required: true, description: The private key on the controller; its C(.pub) is beside it.}
  known_hosts: {type: path, default: ~/.ssh/known_hosts, description: Where trusted host keys are.}
  fingerprint: {type: str, description: The host key's expected fingerprint; an empty one is none.}
  passwords:
    type: list
    elements: str
    default: []
    description: The B(names) of variables; the first that is not empty holds the password.
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Copy the key
  spark.control.ssh_key_copy:
    address: 192.168.1.11
    user: spark
    key_file: ~/.ssh/id_ed25519
    passwords: [ssh_key_password]
"""

RETURN = r"""
ok: {description: Whether the host lets the key in., returned: always, type: bool}
reason:
  description: Why not; one of password_needed, password_refused, host_key, unreachable, no_key, not_taken, or empty.
  returned: always
  type: str
  sample: password_needed
fingerprint: {description: The host key's fingerprint., returned: always, type: str,
              sample: SHA256:6WrdBZ/4hQcXzK0GPx0mYhQ5rYlHCwvwyqVb3s2lGmM}
message: {description: The same as a sentence., returned: always, type: str, sample: spark1 lets this machine in.}
"""
