#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: let a public key in to this host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ssh_authorized_key
short_description: Let a public key in
description:
  - Adds one line to C(authorized_keys) and keeps all others. A key that is there under another comment stays so.
  - Puts the modes right without which sshd ignores the file.
attributes:
  check_mode: {support: full, description: Says what would be added.}
  diff_mode: {support: full, description: Shows the line and the modes.}
  idempotent: {support: full, description: A key that is there is not added again.}
options:
  key:
    type: str
    required: true
    description: The public key, C(type base64 comment); empty in check mode where it is still to be made.
  path: {type: path, default: ~/.ssh/authorized_keys, description: The file.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Let the head's key in
  spark.control.ssh_authorized_key:
    key: "{{ head_key.public_key }}"
"""

RETURN = r"""
path: {description: The file., returned: always, type: str, sample: /home/spark/.ssh/authorized_keys}
"""

import os
import re

from ansible.module_utils.basic import AnsibleModule


def let_in(path: str, key: str, check: bool) -> dict:
    """Add the key; returns {changed, diff}."""
    before, after = {}, {}
    text = read(path)
    blob = key.split()[1] if key else None
    if blob is None or not any(blob in line.split() for line in text.splitlines() if not line.startswith("#")):
        after["key"] = key or "a new key"
        if not check:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
                file.write(("\n" if text and not text.endswith("\n") else "") + key + "\n")
    for place, allowed in ((os.path.dirname(path), 0o755), (path, 0o644)):
        mode = os.stat(place).st_mode & 0o777 if os.path.exists(place) else 0
        if mode & ~allowed:
            before[place], after[place] = f"{mode:04o}", f"{mode & allowed:04o}"
            if not check:
                os.chmod(place, mode & allowed)
    return {"changed": bool(after), "diff": {"before": lines(before), "after": lines(after)}}


def lines(facts: dict) -> str:
    """What a diff shows."""
    return "".join(f"{key}: {value}\n" for key, value in facts.items())


def read(path: str) -> str:
    """The file's text; nothing where there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def main() -> None:
    """Let it in."""
    module = AnsibleModule(
        {
            # A public key is no secret, whatever its option is called.
            "key": {"type": "str", "required": True, "no_log": False},
            "path": {"type": "path", "default": "~/.ssh/authorized_keys"},
        },
        supports_check_mode=True,
    )
    key, path = module.params["key"].strip(), module.params["path"]
    if not re.fullmatch(r"[a-z0-9@.-]+ [A-Za-z0-9+/=]+( [^\r\n]*)?", key) and (key or not module.check_mode):
        module.fail_json(msg="This is no public SSH key.")
    try:
        module.exit_json(path=path, **let_in(path, key, module.check_mode))
    except OSError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
