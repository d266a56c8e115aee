#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: copy a model from one Spark to others with rsync, which outlives SSH, and verify what arrived."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_copy
short_description: Copy a model's weights between Sparks, one stretch at a time
description:
  - O(state=looked) says what this Spark has of the model, what is free, and which of its peers it reaches over SSH.
  - O(state=planned) runs on the controller, which decides from all looks who sends what to whom. The Spark that has a
    key for the other runs rsync, be it the source (it pushes) or the target (it pulls).
  - O(state=hashed) reads the SHA-256 of the files whose name does not tell it, on the source, for O(verify=hash).
  - O(state=started) starts rsync in a session of its own, into a hidden folder beside the model's at the far end.
    A copy that runs already is attached to; files that came in part are gone on with.
  - O(state=watched) is meant for C(until). One call watches until there is news, at most O(hold_seconds).
  - O(state=finished) verifies what came and puts it in its place, at the far end.
  - O(state=absent) stops the copies of the model that were started here. What came stays, and the next copy goes on.
  - O(state=told) runs on the controller and puts what the tasks before it registered into one result.
  - What goes wrong is answered as a problem of that target rather than as a failed task; the others go on.
attributes:
  check_mode: {support: full, description: Says what would be copied.}
  diff_mode: {support: full, description: Lists the files that come.}
  idempotent: {support: full, description: A model that is whole at the far end is left.}
options:
  state:
    type: str
    choices: [looked, planned, hashed, started, watched, finished, absent, told]
    required: true
    description: What to do.
  name: {type: str, required: true, description: "A Hub repo, C(org/name), or the absolute path of a local model."}
  revision: {type: str, description: "Of a repo the branch, tag or commit; the main branch without it."}
  hf_home: {type: path, description: The Hugging Face cache folder.}
  local_dirs: {type: list, elements: path, default: [], description: The folders of local models.}
  state_dir: {type: path, description: Where the records and logs of copies are.}
  key: {type: str, default: ~/.ssh/id_ed25519, description: The key with which a Spark reaches the others.}
  peers:
    type: list
    elements: dict
    default: []
    description: The Sparks, each with C(host), C(address) and perhaps C(user).
  source: {type: str, description: The Spark to copy from; one that has it whole without it.}
  to: {type: list, elements: str, description: The Sparks to copy to; all others without it.}
  verify: {type: str, choices: [size, hash], default: size, description: How what arrived is compared.}
  copies: {type: list, elements: dict, default: [], description: What is to run or runs here.}
  manifest: {type: dict, description: What the model consists of.}
  hold_seconds: {type: float, default: 10, description: The longest that one call watches.}
  operation: {type: str, default: copy_weights, description: For O(state=told) the result's operation.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Look for Qwen3.6 on every Spark
  spark.control.weights_copy:
    state: looked
    name: Qwen/Qwen3.6-35B-A3B-FP8
    hf_home: ~/.cache/huggingface
    state_dir: ~/.spark-control
    peers: [{host: spark2, address: 192.168.177.12}]
  register: looked
"""

RETURN = r"""
looked: {description: What this Spark has., returned: when looked, type: dict}
plan: {description: Who sends what to whom., returned: when planned, type: dict}
hashes: {description: SHA-256 by path., returned: when hashed, type: dict}
done: {description: Whether no copy runs here any more., returned: when started or watched, type: bool}
copies: {description: By target where each copy is or how it ended., returned: when started or watched, type: dict,
         sample: {spark2: {done: true, problem: null}}}
message: {description: Where it is as a sentence., returned: always, type: str,
          sample: "12 of 61 GB, 840 MB/s, about 60 s left"}
phase: {description: What it does., returned: while it runs, type: str, sample: copying}
percent: {description: How far it is., returned: while it runs, type: int, sample: 19}
seconds: {description: Seconds since it began., returned: while it runs, type: float}
problem: {description: What went wrong., returned: when something did, type: dict}
result: {description: "{operation, ok, changed, outcome, reason, message, sparks, problems, …}", returned: when told,
         type: dict}
"""

import os
import shutil
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils import spark_copy, spark_transfer
from ansible_collections.spark.control.plugins.module_utils.spark_transfer import Trouble

_LOOK_EVERY = 0.25


class Copies:
    """The copies of one model that run on this Spark."""

    def __init__(self, wish: dict):
        self.wish, self.name = wish, wish["name"]

    # before

    def looked(self, check: bool) -> dict:
        """What is here, and whom this Spark reaches."""
        found = spark_copy.look(self.wish["hf_home"], self.wish["local_dirs"], self.name, self.wish["revision"])
        found |= {
            "free": spark_transfer.free(os.path.dirname(found["root"])),
            "rsync": bool(shutil.which("rsync")),
            "closed": self.closed(found),
            "reaches": spark_copy.reaches(self.wish["key"], self.wish["peers"]),
        }
        return {"looked": found}

    @staticmethod
    def closed(found: dict) -> str | None:
        """Why nothing can be put in the model's place here, or None."""
        root = found["root"]
        inside = [os.path.join(root, name) for name in ("blobs", "snapshots", "refs") if found["there"]]
        try:
            spark_transfer.must_write(os.path.dirname(root), *inside, found["stage"])
        except Trouble as trouble:
            return str(trouble)
        return None

    def hashed(self, check: bool) -> dict:
        """The hashes that no name tells."""
        if check:
            return {"hashes": {}}
        root = spark_copy.place(self.wish["hf_home"], self.wish["local_dirs"], self.name)
        rows = [row for row in spark_copy.checked(self.wish["manifest"])["files"] if not (row["sha256"] or row["git"])]
        return {"hashes": {row["path"]: spark_copy.digest(os.path.join(root, row["path"]), row) for row in rows}}

    # while

    def started(self, check: bool) -> dict:
        """Start each copy that does not run already."""
        if check:
            return {"changed": True, "done": True, "copies": {}, "message": "would be copied"}
        changed = False
        for copy in self.wish["copies"]:
            with spark_transfer.alone(self.wish["state_dir"]):
                record = self.record(copy)
                if record and spark_transfer.alive(record.get("process")):
                    continue
                self.start(copy)
                changed = True
        return self.state() | {"changed": changed}

    def start(self, copy: dict) -> None:
        """Start one copy."""
        identity, state_dir = self.identity(copy["to"]), self.wish["state_dir"]
        spark_transfer.forget(state_dir, identity)
        paths = {
            suffix: spark_transfer.record_path(state_dir, identity, suffix) for suffix in (".log", ".list", ".exit")
        }
        spark_transfer.save(paths[".list"], "".join(f"{path}\0" for path in copy["paths"]))
        if copy["direction"] == "pull":
            os.makedirs(copy["stage"], exist_ok=True)
        command = spark_copy.rsync_command(copy, self.wish["key"], paths[".list"])
        process = spark_transfer.start_detached(command, paths[".log"], paths[".exit"])
        record = {
            "phase": "copying",
            "total": copy["total"],
            "base": copy["base"],
            "started": time.time(),
            "samples": [],
        }
        record |= {"name": self.name, "to": copy["to"], "process": process}
        spark_transfer.write_record(state_dir, identity, record)

    def watched(self, check: bool) -> dict:
        """Watch until there is news, at most hold_seconds."""
        until = time.monotonic() + self.wish["hold_seconds"]
        first = None
        while True:
            now = self.state()
            if now["done"]:
                return now
            first = first or now
            ended = [to for to, row in now["copies"].items() if row["done"] and not first["copies"][to]["done"]]
            if ended or now["percent"] >= first["percent"] + 2 or time.monotonic() >= until:
                return now
            time.sleep(_LOOK_EVERY)

    def state(self) -> dict:
        """Where all copies are, as one."""
        rows = {copy["to"]: self.state_of(copy) for copy in self.wish["copies"]}
        running = {to: row for to, row in rows.items() if not row["done"]}
        if not running:
            return {"done": True, "copies": rows, "message": "copied"}
        total = sum(row["progress"]["total"] for row in running.values()) or 1
        percent = int(sum(row["progress"]["done"] for row in running.values()) * 100 / total)
        words = [row["message"] if len(rows) == 1 else f"to {to} {row['message']}" for to, row in running.items()]
        seconds = max(row["seconds"] for row in running.values())
        told = {"phase": "copying", "percent": min(99, percent), "message": "; ".join(words), "seconds": seconds}
        return {"done": False, "copies": rows} | told

    def state_of(self, copy: dict) -> dict:
        """One copy: how far, or how it ended."""
        record, identity = self.record(copy), self.identity(copy["to"])
        if record is None:
            problem = {"code": "stopped", "words": "somebody else stopped the copy"}
            return {"done": True, "problem": problem}
        running = spark_transfer.alive(record["process"])
        log = spark_transfer.tail(spark_transfer.record_path(self.wish["state_dir"], identity, ".log"))
        if running:
            told = spark_transfer.gauge(record, record["base"] + spark_copy.sent(log))
            spark_transfer.write_record(self.wish["state_dir"], identity, record)
            return {"done": False, **told}
        code = spark_transfer.tail(spark_transfer.record_path(self.wish["state_dir"], identity, ".exit")).strip()
        seconds = round(time.time() - record["started"], 1)
        if code == "0":
            return {"done": True, "problem": None, "seconds": seconds}
        problem = {"code": "stopped", "words": "the copy was cut off on {near}"}
        if code:
            problem = spark_copy.fault(int(code), log)
        return {"done": True, "problem": problem, "seconds": seconds, "log_tail": spark_transfer.lines(log)}

    def identity(self, to: str) -> str:
        """The name of a copy's record."""
        return "copy-" + spark_transfer.transfer_id(self.name, to)

    def record(self, copy: dict) -> dict | None:
        """A copy's record, if it is one."""
        record = spark_transfer.read_record(self.wish["state_dir"], self.identity(copy["to"]))
        return record if record and isinstance(record.get("base"), int) else None

    # after

    def finished(self, check: bool) -> dict:
        """At the far end: verify, and put in place."""
        if check:
            return {"changed": True, "message": "would be verified"}
        root = spark_copy.place(self.wish["hf_home"], self.wish["local_dirs"], self.name)
        changed = spark_copy.settle(root, self.wish["manifest"], self.wish["verify"] == "hash")
        found = spark_copy.look(self.wish["hf_home"], self.wish["local_dirs"], self.name, self.wish["revision"])
        if not found["complete"]:
            raise Trouble("incomplete", f"All files came, but the model is not whole: {found['reason']}.")
        return {"changed": changed, "message": "verified"}

    def absent(self, check: bool) -> dict:
        """Stop what runs here."""
        stopped = []
        if not check:
            with spark_transfer.alone(self.wish["state_dir"]):
                pass  # a start that was under way when the job was cancelled has ended now
        for peer in self.wish["peers"]:
            record, identity = self.record({"to": peer["host"]}), self.identity(peer["host"])
            if record and spark_transfer.alive(record["process"]):
                log = spark_transfer.tail(spark_transfer.record_path(self.wish["state_dir"], identity, ".log"))
                came = spark_transfer.same_unit(record["base"] + spark_copy.sent(log), record["total"])
                stopped.append(f"the copy to {peer['host']} was stopped at {came}")
                if not check:
                    spark_transfer.end(record["process"])
            if record and not check:
                spark_transfer.forget(self.wish["state_dir"], identity)
        return {"changed": bool(stopped), "stopped": stopped, "message": "; ".join(stopped) or "no copy was running"}


def main() -> None:
    """One step."""
    module = AnsibleModule(
        {
            "state": {
                "type": "str",
                "choices": ["looked", "hashed", "started", "watched", "finished", "absent"],
                "required": True,
            },
            "name": {"type": "str", "required": True},
            "revision": {"type": "str"},
            "hf_home": {"type": "path"},
            "local_dirs": {"type": "list", "elements": "path", "default": []},
            "state_dir": {"type": "path"},
            "key": {"type": "str", "default": "~/.ssh/id_ed25519", "no_log": False},
            "peers": {"type": "list", "elements": "dict", "default": []},
            "verify": {"type": "str", "choices": ["size", "hash"], "default": "size"},
            "copies": {"type": "list", "elements": "dict", "default": []},
            "manifest": {"type": "dict"},
            "hold_seconds": {"type": "float", "default": 10},
        },
        supports_check_mode=True,
    )
    result = {"changed": False, "done": True}
    try:
        result |= getattr(Copies(module.params), module.params["state"])(module.check_mode)
    except Trouble as trouble:
        result |= {"problem": trouble.problem(), "message": str(trouble)}
    except OSError as error:
        message = f"{error.filename or 'A folder'} cannot be used: {error.strerror or error}."
        code = "disk_full" if error.errno == 28 else "not_writable"
        result |= {"problem": {"code": code, "message": message}, "message": message}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
