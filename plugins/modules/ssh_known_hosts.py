#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: have the head know its workers' host keys, and see that it gets in to each."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ssh_known_hosts
short_description: Have the head know its workers, and try each
description:
  - Writes into the head's C(known_hosts) what the controller trusts already, under each address that the launcher uses.
    Another key that the head had for such an address goes; every other line stays.
  - Logs in to each worker with a plain C(ssh ADDRESS), as launch-cluster.sh does.
  - A part of it runs on the controller, which looks the keys up (the action plugin of the same name).
attributes:
  check_mode: {support: full, description: "Says what would be written, and who gets in already."}
  diff_mode: {support: full, description: Shows the lines that go and come.}
  idempotent: {support: full, description: Keys that are there are left.}
options:
  workers:
    type: list
    elements: raw
    required: true
    description: The workers' inventory names. The action plugin makes them C({host, names, keys}).
  head: {type: str, default: the head, description: "The head's inventory name; the action plugin gives it."}
  trusted: {type: path, default: ~/.ssh/known_hosts, description: The controller's file of trusted host keys.}
  path: {type: path, default: ~/.ssh/known_hosts, description: The head's.}
  pending:
    type: bool
    default: false
    description: In check mode, whether a run would let the head's key in first; then being kept out now says nothing.
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Have the head know its workers, and try each
  spark.control.ssh_known_hosts:
    workers: [spark2]
"""

RETURN = r"""
ok: {description: Whether every worker lets the head in., returned: always, type: bool}
message: {description: The same as sentences., returned: always, type: str,
          sample: spark1 reaches spark2 over SSH without a password.}
workers:
  description: "What came of each: host, ok, message."
  returned: always
  type: list
  sample: [{host: spark2, ok: true, message: It lets the head in.}]
"""

import base64
import hashlib
import hmac
import os
import subprocess

from ansible.module_utils.basic import AnsibleModule

WOULD = "It would let the head in."


def pinned(text: str, wanted: dict[str, list[str]]) -> tuple[str, list[str], list[str]]:
    """The file with exactly the wanted keys ("type base64") under each name: (text, lines gone, lines added)."""
    kept, gone, there = [], [], set()
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 3 or line.startswith(("#", "@")):
            kept.append(line)
            continue
        key = " ".join(fields[1:3])
        stale = [name for name in wanted if is_for(fields[0], name) and key not in wanted[name]]
        there |= {(name, key) for name in wanted if is_for(fields[0], name) and key in wanted[name]}
        if not stale:
            kept.append(line)
            continue
        gone.append(line)
        # A line may be for other names too, and those keep it.
        others = [name for name in fields[0].split(",") if name not in stale and not name.startswith("|1|")]
        if others:
            kept.append(" ".join([",".join(others), *fields[1:]]))
    added = [f"{name} {key}" for name, keys in wanted.items() for key in keys if (name, key) not in there]
    return "".join(f"{line}\n" for line in [*kept, *added]), gone, added


def is_for(pattern: str, name: str) -> bool:
    """Whether a line's first field is for that name; OpenSSH may have hashed it (|1|salt|HMAC-SHA1, in base64)."""
    if not pattern.startswith("|1|"):
        return name in pattern.split(",")
    try:
        salt, digest = (base64.b64decode(part) for part in pattern[3:].split("|"))
    except ValueError:
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)


def try_login(name: str) -> str | None:
    """None if a plain `ssh NAME` gets in without a question, else what it said."""
    strict = ("BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=5", "ControlPath=none")
    options = [word for option in strict for word in ("-o", option)]
    try:
        done = subprocess.run(
            ["ssh", *options, name, "true"], capture_output=True, stdin=subprocess.DEVNULL, timeout=20, check=False
        )
    except FileNotFoundError:
        return "ssh is not installed"
    except subprocess.TimeoutExpired:
        return "no answer within 20 s"
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return (said[-1].strip() if said else f"exit code {done.returncode}") if done.returncode else None


def attempt(worker: dict) -> dict:
    """Try each name of a worker: {host, ok, message}."""
    if worker.get("problem"):
        return {"host": worker["host"], "ok": False, "message": worker["problem"]}
    for name in worker["names"]:
        trouble = try_login(name)
        if trouble:
            return {"host": worker["host"], "ok": False, "message": f"It does not let the head in: {trouble}"}
    return {"host": worker["host"], "ok": True, "message": "It lets the head in."}


def main() -> None:
    """Pin, and try."""
    module = AnsibleModule(
        {
            "head": {"type": "str", "default": "the head"},
            "workers": {"type": "list", "elements": "raw", "required": True},
            "trusted": {"type": "path", "default": "~/.ssh/known_hosts"},
            "path": {"type": "path", "default": "~/.ssh/known_hosts"},
            "pending": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    workers, path = module.params["workers"], module.params["path"]
    wanted = {name: worker["keys"] for worker in workers if worker["keys"] for name in worker["names"]}
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            before = file.read()
    except FileNotFoundError:
        before = ""
    after, gone, added = pinned(before, wanted)
    changed = bool(gone or added)
    if changed and not module.check_mode:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fresh = f"{path}.{os.getpid()}"
        with open(
            os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8", errors="surrogateescape"
        ) as file:
            file.write(after)
        os.replace(fresh, path)
    rows = [attempt(worker) for worker in workers]
    if module.check_mode and (changed or module.params["pending"]):
        # What does not get in yet will, unless something is in the way of the real run as well.
        rows = [
            row if row["ok"] or worker.get("problem") else {"host": row["host"], "ok": True, "message": WOULD}
            for row, worker in zip(rows, workers, strict=True)
        ]
    diff = {"before": "".join(f"{line}\n" for line in gone), "after": "".join(f"{line}\n" for line in added)}
    ok = all(row["ok"] for row in rows)
    module.exit_json(changed=changed, ok=ok, workers=rows, message=tell(module.params["head"], rows), diff=diff)


def tell(head: str, rows: list[dict]) -> str:
    """What came of all workers, as sentences."""
    if not rows:
        return "There is one Spark only, and nobody to reach."
    said = []
    for verb, would in (("reaches", False), ("would reach", True)):
        if well := [row["host"] for row in rows if row["ok"] and (row["message"] == WOULD) == would]:
            said.append(f"{head} {verb} {' and '.join(well)} over SSH without a password.")
    return " ".join([*said, *(f"{row['host']}: {row['message']}" for row in rows if not row["ok"])])


if __name__ == "__main__":
    main()
