#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: see how far a launched model is; ready means that one real token streamed."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_wait
short_description: Wait for a launched model, one stretch at a time
description:
  - Meant for C(until). One call watches until there is news (the phase or the percent moved, the model answers, or it
    died), at most O(hold_seconds), so that each retry is an event with the state of the load in it.
  - Up is not ready. Ready is one real streamed token. Dead is the moment when the container or the server in it goes,
    on any node of the plan; the head looks at the others over SSH.
  - A fault is answered as RV(problem) rather than as a failed task, because C(until) retries failures.
attributes:
  check_mode: {support: full, description: Answers that the model would be waited for.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: A model that answers is ready at once.}
options:
  plan: {type: dict, required: true, description: The plan that was launched.}
  container: {type: str, required: true, description: The container's name.}
  address: {type: str, required: true, description: The IP address of the head Spark.}
  state_dir: {type: path, required: true, description: Where the record and the lease are kept.}
  load_seconds: {type: float, default: 1800, description: The longest that loading may take since the launch.}
  answer_seconds:
    type: float
    default: 120
    description: The longest that a model whose server is up may take to stream its first token.
  hold_seconds: {type: float, default: 10, description: The longest that one call watches.}
  lease: {type: str, description: "The id of our lease, renewed by each call, and given back once the model answers."}
  meminfo: {type: path, default: /proc/meminfo, description: A file in the format of /proc/meminfo.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Wait until Gemma 4 answers
  spark.control.vllm_wait:
    plan: "{{ planned.plan }}"
    container: vllm_node
    address: "{{ ansible_host }}"
    state_dir: ~/.spark-control
  register: answer
  until: answer.ready or answer.problem is defined
  retries: 100000
  delay: 0
"""

RETURN = r"""
ready: {description: Whether it streams., returned: always, type: bool}
phase: {description: What its log says it is doing., returned: always, type: str, sample: loading weights}
percent: {description: How far it is., returned: always, type: int, sample: 62}
seconds: {description: Seconds since the launch., returned: always, type: float}
message: {description: The same as a sentence., returned: always, type: str, sample: loading weights 62 %}
since: {description: Epoch seconds at which it answered., returned: when ready, type: float}
problem: {description: What went wrong., returned: when something did, type: dict}
released: {description: Whether the lease was given back., returned: when the model answers, type: bool}
log_tail: {description: The last lines of its log., returned: when something went wrong, type: list}
"""

import contextlib
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils import spark_docker, spark_host
from ansible_collections.spark.control.plugins.module_utils.spark_fit import claim
from ansible_collections.spark.control.plugins.module_utils.spark_lease import Leased, release, renew
from ansible_collections.spark.control.plugins.module_utils.spark_measured import keep_measured
from ansible_collections.spark.control.plugins.module_utils.spark_serving import (
    Vllm,
    fallen,
    last_lines,
    last_words,
    launch_log,
    launcher_lives,
    progress,
    read_end,
    read_record,
    write_record,
)
from ansible_collections.spark.control.plugins.module_utils.spark_workers import Workers

# A server needs a moment between the launcher's `docker exec -d` and its process being there.
_GRACE = 5.0
_LOOK_EVERY = 0.1
_LOG_EVERY = 0.5


class Watch:
    """One stretch of watching one launch."""

    def __init__(self, wish: dict):
        self.wish, self.plan = wish, wish["plan"]
        self.record = read_record(wish["state_dir"]) or {"launched": time.time(), "since": None}
        self.vllm = Vllm(wish["address"], self.plan["port"])
        self.workers = Workers(self.plan["nodes"][1:], wish["container"])
        self.log = b""
        self.up = self.alive = False
        self.seen = time.monotonic()

    def run(self) -> dict:
        """Watch until there is news; returns what RETURN describes."""
        renew(self.wish["state_dir"], self.wish["lease"], 120)
        try:
            return self.watch()
        finally:
            self.workers.close()

    def watch(self) -> dict:
        """The same, without the lease."""
        until = time.monotonic() + self.wish["hold_seconds"]
        first = None
        next_look = 0.0
        while True:
            if self.streams():
                return self.ready()
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + _LOG_EVERY
                if trouble := self.trouble():
                    told = {"problem": trouble, "message": trouble["message"], "log_tail": last_lines(self.log)}
                    return self.state() | told
                now = self.state()
                first = first or now
                moved = now["phase"] != first["phase"] or now["percent"] >= first["percent"] + 3
                if moved or time.monotonic() >= until:
                    return now
            time.sleep(_LOOK_EVERY)

    def streams(self) -> bool:
        """Whether one real token streamed just now."""
        names = self.vllm.models()
        self.up = names is not None
        if not names:
            return False
        model = self.plan["served_name"] if self.plan["served_name"] in names else names[0]
        # While the server is up, an answer may take as long as is left of its own bound.
        patient = Vllm(self.wish["address"], self.plan["port"], timeout=max(1.0, self.wish["answer_seconds"] / 4))
        return patient.first_token(model)[0]

    def trouble(self) -> dict | None:
        """Why there is nothing left to wait for, or None. Reads the log first: with the container it would be gone."""
        name = self.wish["container"]
        passed = time.time() - self.record["launched"]
        try:
            # The January launcher stays in front of the model, whose words then go to the launcher's output.
            said = read_end(launch_log(self.wish["state_dir"], self.plan["model"]))
            self.log = (said + spark_docker.logs(name, tail=400)) or self.log
            there = spark_docker.container(name)
            alive = bool(there and there["running"] and spark_docker.serving_processes(name))
        except spark_docker.DockerError as error:
            return {"code": "docker", "message": f"docker stopped answering while it loaded: {error}."}
        if not there or not there["running"]:
            return self.crashed("Its container ended while it loaded.")
        self.seen = time.monotonic() if alive else self.seen
        # A launcher that stays in front has steps between its mods and the server in which nothing runs.
        missing = time.monotonic() - self.seen > (_GRACE if launcher_lives(self.record) else 0)
        if not alive and missing and (self.alive or passed > _GRACE):
            return self.crashed("It stopped by itself while it loaded.")
        self.alive = alive
        if not self.up and (trouble := self.workers.trouble(passed > _GRACE)):
            if trouble["code"] == "launch_failed":
                trouble["message"] += f" The launcher said: {last_words(said)}."
            return trouble
        if self.up and self.up_for() > self.wish["answer_seconds"]:
            bound = f"{self.wish['answer_seconds']:.0f} s"
            return {"code": "not_answering", "message": f"It came up and gave no answer within {bound}."}
        if passed > self.wish["load_seconds"]:
            bound = f"{self.wish['load_seconds'] / 60:.0f} min"
            return {"code": "not_answering", "message": f"It was still loading after {bound}."}
        return None

    def crashed(self, said: str) -> dict:
        return {"code": "crashed", "message": fallen(said, self.log, self.plan["nodes"])}

    def up_for(self) -> float:
        """Seconds since the server was first seen up; kept in the record, because each call is a process of its own."""
        if not self.record.get("up"):
            self.record["up"] = time.time()
            if "plan" in self.record:
                write_record(self.wish["state_dir"], self.record)
        return time.time() - self.record["up"]

    def state(self) -> dict:
        """Where the load is."""
        phase, percent = progress(self.log.decode(errors="replace"))
        seconds = round(time.time() - self.record["launched"], 1)
        message = "waiting for its first token" if self.up else f"{phase} {percent} %"
        return {"ready": False, "phase": phase, "percent": percent, "seconds": seconds, "message": message}

    def ready(self) -> dict:
        """Write down since when it serves, and say so."""
        since = self.record["since"] = self.record["since"] or time.time()
        if "plan" in self.record:
            write_record(self.wish["state_dir"], self.record)
        self.measure()
        passed = round(since - self.record["launched"], 1)
        done = {"ready": True, "phase": "answering", "percent": 100, "seconds": passed, "since": since}
        if self.wish["lease"]:
            # A task of its own for that would cost a third of a second. Taken by force, it is not ours to give.
            with contextlib.suppress(OSError, Leased):
                release(self.wish["state_dir"], self.wish["lease"])
                done["released"] = True
        return done | {"message": f"answering after {passed:.0f} s"}

    def measure(self) -> None:
        """Keep what it holds here beside its estimate, for the next one; that this fails is no fault of the model's."""
        wish = self.wish
        with contextlib.suppress(OSError, KeyError, ValueError, spark_docker.DockerError):
            pids = {process["pid"] for process in spark_docker.serving_processes(wish["container"])}
            held = sum(size for pid, size in spark_host.gpu_memory_by_pid().items() if pid in pids)
            estimate = claim(self.plan, spark_host.memory(wish["meminfo"])["total"])
            if held:
                keep_measured(wish["state_dir"], self.plan, estimate, held)


def main() -> None:
    """Watch one stretch."""
    module = AnsibleModule(
        {
            "plan": {"type": "dict", "required": True},
            "container": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "state_dir": {"type": "path", "required": True},
            "load_seconds": {"type": "float", "default": 1800},
            "answer_seconds": {"type": "float", "default": 120},
            "hold_seconds": {"type": "float", "default": 10},
            "lease": {"type": "str"},
            "meminfo": {"type": "path", "default": "/proc/meminfo"},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(
            changed=False, ready=True, phase="preview", percent=0, seconds=0, message="would be waited for"
        )
    module.exit_json(changed=False, **Watch(module.params).run())


if __name__ == "__main__":
    main()
