#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: have an SSH key pair; the private half stays where it is made."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ssh_key_pair
short_description: Have an ed25519 key pair
description:
  - Makes a key pair without a passphrase where there is none. A key that is there is never replaced, of whatever type.
  - Answers the public half only.
attributes:
  check_mode: {support: full, description: Says that a pair would be made; there is no public key to answer then.}
  diff_mode: {support: full, description: "Shows the public half, and a mode that is put right."}
  idempotent: {support: full, description: A pair that is there is kept.}
options:
  path: {type: path, required: true, description: The private half; the public one is beside it with C(.pub).}
  comment: {type: str, description: What a new key is called; by default C(user@host).}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Have a key on the head
  spark.control.ssh_key_pair:
    path: ~/.ssh/id_ed25519
"""

RETURN = r"""
public_key: {description: The public half; empty where it is still to be made., returned: always, type: str,
             sample: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI... spark@spark1}
path: {description: The private half's path., returned: always, type: str, sample: /home/spark/.ssh/id_ed25519}
"""

import os
import subprocess

from ansible.module_utils.basic import AnsibleModule


class KeyTrouble(Exception):
    """The pair cannot be had; the text says why."""


def have_pair(path: str, comment: str | None, check: bool) -> dict:
    """Make what is missing; returns {changed, public_key, diff}. Raises KeyTrouble."""
    public = f"{path}.pub"
    before, after = {}, {}
    if not os.path.lexists(path):
        if os.path.lexists(public):
            raise KeyTrouble(f"{public} is there without {path}. Move it away, or put the private half back.")
        after["key"] = "a new ed25519 key"
        if check:
            return {"changed": True, "public_key": "", "diff": {"before": lines(before), "after": lines(after)}}
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        named = ["-C", comment] if comment else []
        keygen("-q", "-t", "ed25519", "-N", "", *named, "-f", path)
    mode = os.stat(path).st_mode & 0o777
    if mode & 0o177:
        before["mode"], after["mode"] = f"{mode:04o}", "0600"
        if not check:
            os.chmod(path, 0o600)
    try:
        with open(public, encoding="utf-8") as file:
            text = file.read().strip()
    except FileNotFoundError:
        # -P '': a key with a passphrase must fail here rather than ask.
        text = keygen("-y", "-P", "", "-f", path).strip()
        after["public half"] = text
        if not check:
            with open(os.open(public, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
                file.write(f"{text}\n")
    if "key" in after:
        after["key"] = text
    return {"changed": bool(after), "public_key": text, "diff": {"before": lines(before), "after": lines(after)}}


def lines(facts: dict) -> str:
    """What a diff shows."""
    return "".join(f"{key}: {value}\n" for key, value in facts.items())


def keygen(*arguments: str) -> str:
    """Run ssh-keygen, which asks nobody; what it printed. Raises KeyTrouble with its last line."""
    try:
        done = subprocess.run(
            ["ssh-keygen", *arguments], capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False
        )
    except FileNotFoundError:
        raise KeyTrouble("ssh-keygen is not installed (Debian and Ubuntu: openssh-client).") from None
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise KeyTrouble(f"ssh-keygen: {said[-1] if said else 'failed'}")
    return done.stdout.decode()


def main() -> None:
    """Have the pair."""
    module = AnsibleModule(
        {"path": {"type": "path", "required": True}, "comment": {"type": "str"}}, supports_check_mode=True
    )
    path = os.path.abspath(module.params["path"])
    try:
        module.exit_json(path=path, **have_pair(path, module.params["comment"], module.check_mode))
    except (KeyTrouble, OSError) as error:
        module.fail_json(msg=str(error), path=path, public_key="")


if __name__ == "__main__":
    main()
