#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: stop the vLLM container of one Spark, keep its log, and see that its memory comes back."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_stop
short_description: Stop the vLLM container, verified
description:
  - Lets requests in flight finish where asked to, saves the container's log (C(--rm) would take it along), removes
    the container at once (its PID 1 is a C(sleep) that ignores C(TERM), so a C(docker stop) only burns its grace),
    asks docker whether it is gone, and waits until the memory is back.
  - A fault is answered as RV(problem) rather than as a failed task, so that one task can look at every Spark's.
attributes:
  check_mode: {support: full, description: Says whether there is something to stop.}
  diff_mode: {support: full, description: Shows the container before and after.}
  idempotent: {support: full, description: Nothing to stop is no change.}
options:
  container: {type: str, required: true, description: The container's exact name.}
  state_dir: {type: path, required: true, description: 'Where C(logs/) and the record of what serves are kept.'}
  meminfo: {type: path, default: /proc/meminfo, description: A file in the format of /proc/meminfo.}
  needs: {type: int, default: 0, description: Bytes of memory that have to be available; nought does not wait.}
  memory_seconds: {type: float, default: 60, description: How long to wait for that memory.}
  address: {type: str, description: Drain the vLLM at this address first.}
  port: {type: int, description: Its port.}
  drain_seconds: {type: float, default: 60, description: The longest wait for requests in flight.}
  keep_logs: {type: int, default: 20, description: How many saved logs are kept.}
  lease: {type: str, description: "The id of our lease, renewed while this waits."}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Stop the model on every Spark
  spark.control.vllm_stop:
    container: vllm_node
    state_dir: ~/.spark-control
    needs: 97000000000
"""

RETURN = r"""
model: {description: "The model that the container served, by its label.", returned: when there was one, type: str}
log_file: {description: Where its log was saved., returned: when there was one, type: str}
log_tail: {description: Its last lines., returned: when there was one, type: list}
in_flight: {description: Requests that were cut off., returned: when drained, type: int, sample: 0}
available: {description: Bytes of memory available afterwards., returned: always, type: int}
problem:
  description: What went wrong, for a person and by code.
  returned: when something did
  type: dict
  sample: {code: memory_not_back, message: "91 GB are needed and 38 GB came back within 60 s."}
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils import spark_docker
from ansible_collections.spark.control.plugins.module_utils.spark_host import memory
from ansible_collections.spark.control.plugins.module_utils.spark_lease import renew
from ansible_collections.spark.control.plugins.module_utils.spark_serving import (
    Vllm,
    drain,
    drop_record,
    end_launcher,
    last_lines,
    launch_log,
    read_end,
    save_text,
)


def stop(wish: dict, there: dict) -> dict:
    """Save the log, remove the container, ask docker until it is gone. Raises DockerError."""
    done: dict = {"model": there["labels"].get(spark_docker.LABEL_MODEL)}
    if wish["address"] and wish["port"]:
        done["in_flight"] = drain(Vllm(wish["address"], wish["port"]), wish["drain_seconds"])
    # The January launcher stays in front of the model, whose words then are in the launcher's output on the head.
    said = read_end(launch_log(wish["state_dir"], done["model"]), 64 << 20) if done["model"] else b""
    log = said + spark_docker.logs(wish["container"])
    done["log_file"] = save_log(wish["state_dir"], done["model"] or wish["container"], log, wish["keep_logs"])
    done["log_tail"] = last_lines(log)
    end_launcher(wish["state_dir"])
    # By id: another container may have taken the name since we looked.
    said = spark_docker.docker("rm", "-f", there["id"], timeout=60).stderr.decode(errors="replace")
    deadline = time.monotonic() + 10
    while (left := spark_docker.container(wish["container"])) is not None:
        if left["id"] != there["id"]:
            return done | problem("stop_failed", f"Somebody started another container {wish['container']} meanwhile.")
        if time.monotonic() > deadline:
            heard = f": {said.strip()}" if said.strip() else "."
            return done | problem("stop_failed", f"docker did not remove the container {wish['container']}{heard}")
        time.sleep(0.1)
    drop_record(wish["state_dir"])
    return done


def wait_for_memory(wish: dict) -> dict:
    """Wait until `needs` bytes are available: vLLM refuses to start on less, and page cache can count against it."""
    deadline = time.monotonic() + wish["memory_seconds"]
    renewed = time.monotonic()
    while True:
        available = memory(wish["meminfo"])["available"]
        if available >= wish["needs"]:
            return {"available": available}
        if time.monotonic() > deadline:
            need, free = (round(size / 2**30) for size in (wish["needs"], available))
            text = (
                f"{need} GB are needed and {free} GB are free, {wish['memory_seconds']:.0f} s after everything was"
                " stopped. Something else holds the memory; a reboot of this Spark may be needed."
            )
            return {"available": available} | problem("memory_not_back", text)
        if time.monotonic() - renewed > 15:
            renew(wish["state_dir"], wish["lease"], 120)
            renewed = time.monotonic()
        time.sleep(0.1)


def save_log(state_dir: str, name: str, log: bytes, keep: int) -> str:
    """Write the log beside its predecessors and drop the oldest beyond `keep`; returns its path."""
    folder = os.path.join(state_dir, "logs")
    path = os.path.join(folder, f"{time.strftime('%Y%m%d-%H%M%S')}-{os.path.basename(name)}.log")
    save_text(path, log)
    for old in sorted(entry for entry in os.listdir(folder) if entry.endswith(".log"))[:-keep]:
        os.unlink(os.path.join(folder, old))
    return path


def problem(code: str, message: str) -> dict:
    """A fault, in the form that the next task reads."""
    return {"problem": {"code": code, "message": message}}


def main() -> None:
    """Stop what is there, and wait."""
    module = AnsibleModule(
        {
            "container": {"type": "str", "required": True},
            "state_dir": {"type": "path", "required": True},
            "meminfo": {"type": "path", "default": "/proc/meminfo"},
            "needs": {"type": "int", "default": 0},
            "memory_seconds": {"type": "float", "default": 60},
            "address": {"type": "str"},
            "port": {"type": "int"},
            "drain_seconds": {"type": "float", "default": 60},
            "keep_logs": {"type": "int", "default": 20},
            "lease": {"type": "str"},
        },
        supports_check_mode=True,
    )
    wish = module.params
    done: dict = {}
    there = None
    try:
        there = spark_docker.container(wish["container"])
        if there and not module.check_mode:
            done = stop(wish, there)
    except spark_docker.DockerError as error:
        done = problem("docker", f"docker does not answer: {error}.")
    if "problem" not in done and not module.check_mode:
        done |= wait_for_memory(wish)
    before = f"{wish['container']}: {there['labels'].get(spark_docker.LABEL_MODEL, there['image'])}\n" if there else ""
    module.exit_json(changed=there is not None, diff={"before": before, "after": ""}, **done)


if __name__ == "__main__":
    main()
