#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: everything that a page or a swap wants to know of one Spark, in one task."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: spark_probe
short_description: Look at one Spark and change nothing
description:
  - Reads memory, GPU, disk, docker, the vLLM container and its HTTP answers, the launcher, the images and weights
    asked for, the record of what was launched, and the GPU lease, all at once.
  - Everything is unprivileged, and what cannot be read is said in the answer rather than failing the task.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  address: {type: str, required: true, description: The IP address at which this Spark's vLLM listens.}
  port: {type: int, required: true, description: Its port.}
  container: {type: str, required: true, description: The name of the vLLM container.}
  state_dir: {type: path, required: true, description: Where the record of what serves and the lease are kept.}
  launcher_dir: {type: path, required: true, description: The folder that holds launch-cluster.sh.}
  hf_home: {type: path, required: true, description: The Hugging Face cache folder.}
  meminfo: {type: path, default: /proc/meminfo, description: A file in the format of /proc/meminfo.}
  images: {type: list, elements: str, default: [], description: Images whose ids are wanted.}
  repos:
    type: list
    elements: dict
    default: []
    description: Models whose weights are wanted.
    suboptions:
      repo: {type: str, required: true, description: 'C(org/name), or the absolute path of a local model.'}
      revision: {type: str, description: "A branch, tag or commit; the main branch without it."}
  local_model_dirs:
    type: list
    elements: path
    default: []
    description: Folders of local or fine-tuned models.
  scan: {type: bool, default: false, description: Whether to look at all models on the disks.}
  plan: {type: dict, description: "On the head, what is about to be launched; the launcher is asked what it says."}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Look at every Spark
  spark.control.spark_probe:
    address: "{{ ansible_host }}"
    port: 8888
    container: vllm_node
    state_dir: ~/.spark-control
    launcher_dir: ~/spark-vllm-docker
    hf_home: ~/.cache/huggingface
  register: seen
"""

RETURN = r"""
spark:
  description: What was found. The keys of a model's weights, and of a scan, are in the weights role's README.
  returned: always
  type: dict
  sample:
    memory: {total: 130596470784, available: 92341796864, model: 33285996544,
             others: [{name: the container comfyui, bytes: 65498251264}]}
    gpu: {name: NVIDIA GB10, utilization: 3.0, temperature: 54.0, power: 21.4}
    disk: {path: ~/.cache/huggingface, total: 3936818380800, free: 1536818380800}
    docker: {ok: true, error: null}
    session: {user: spark, linger: true, remove_ipc: true}
    rehearsal: {plan: [[head_kept_out, "spark1 does not get in to spark2 over SSH, …"]], serving: []}
    images: {vllm-node: "sha256:4bcff63911fc"}
    image_contents: {vllm-node: "sha256:90c1f2a1e04d"}
    launcher: {path: /home/spark/spark-vllm-docker/launch-cluster.sh, present: true, shape: october, checks: true,
               dot_env: {broken: null, container: null, local_ip: null, ring: [],
                         spaced: []}}
    container: {id: 8f2c, name: vllm_node, running: true, image: vllm-node, image_id: "sha256:4bcff63911fc",
                started_at: 1795000000.0, labels: {spark-control.model: qwen3.6-35b-a3b}, serving_process: true,
                ray: false}
    vllm: {models: [Qwen/Qwen3.6-35B-A3B-FP8], in_flight: 0}
    record: {plan: {model: qwen3.6-35b-a3b}, job: 20261122-080000-ab12, launched: 1795000000.0, since: 1795000090.0}
    lease: {id: 20261122-080000-ab12, holder: swap, purpose: swap to gemma, seconds_left: 84.2, seconds_held: 35.8}
    measured: {launches: {"sha256:1f": {estimate: 91268055040, measured: 93415538688, at: 1795000090.0}}, models: {}}
    weights: {Qwen/Qwen3.6-35B-A3B-FP8: {state: complete, weights_bytes: 37000000000, reason: ""}}
    scan: null
    clock: 1795000100.0
"""

import contextlib
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils import (
    spark_cache,
    spark_docker,
    spark_host,
    spark_launcher,
    spark_rehearsal,
)
from ansible_collections.spark.control.plugins.module_utils.spark_lease import read as read_lease
from ansible_collections.spark.control.plugins.module_utils.spark_measured import read_measured
from ansible_collections.spark.control.plugins.module_utils.spark_serving import Vllm, read_record

LEAST_TOLD = 256 << 20  # bytes; every desktop holds a little


def look(wanted: dict) -> dict:
    """Everything RETURN describes; what waits for other programs runs side by side."""
    with ThreadPoolExecutor(8) as pool:
        docker = pool.submit(look_at_docker, wanted["container"], wanted["images"])
        gpu = pool.submit(spark_host.gpu)
        session = pool.submit(spark_host.session)
        by_pid = pool.submit(spark_host.gpu_memory_by_pid)
        launcher = pool.submit(spark_launcher.look, wanted["launcher_dir"])
        vllm = pool.submit(look_at_vllm, wanted["address"], wanted["port"])
        rehearsal = pool.submit(rehearse, wanted, launcher, docker, vllm)
        weights = pool.submit(look_at_disks, wanted)
        seen = docker.result()
        pids = seen.pop("pids")
        held = sum(size for pid, size in by_pid.result().items() if pid in pids)
        others = strangers({pid: size for pid, size in by_pid.result().items() if pid not in pids}, wanted["container"])
        return seen | {
            "memory": spark_host.memory(wanted["meminfo"]) | {"model": held, "others": others},
            "gpu": gpu.result(),
            "disk": spark_host.disk(wanted["hf_home"]),
            "launcher": launcher.result(),
            "session": session.result(),
            "rehearsal": rehearsal.result(),
            "vllm": vllm.result(),
            "record": read_record(wanted["state_dir"]),
            "lease": read_lease(wanted["state_dir"]),
            "measured": read_measured(wanted["state_dir"]),
            **weights.result(),
            "clock": time.time(),
        }


def strangers(by_pid: dict[int, int], ours: str) -> list[dict]:
    """Who else holds the GPU's memory, the most first: [{name, bytes}]; a container by its name, else the program."""
    if sum(by_pid.values()) < LEAST_TOLD:
        return []
    owners = {}
    with contextlib.suppress(spark_docker.DockerError):
        for name in spark_docker.running():
            if name != ours:
                owners |= {row["pid"]: f"the container {name}" for row in spark_docker.processes(name)}
    held: dict[str, int] = {}
    for pid, size in by_pid.items():
        name = owners.get(pid) or f"{spark_host.program(pid) or 'a process'} (pid {pid})"
        held[name] = held.get(name, 0) + size
    told = [{"name": name, "bytes": size} for name, size in held.items() if size >= LEAST_TOLD]
    return sorted(told, key=lambda row: -row["bytes"])[:5]


def rehearse(wanted: dict, launcher: Future, docker: Future, vllm: Future) -> dict:
    """What the launcher would say to the plan, and to what serves, should that have to be put back: lists of troubles.

    Each is null where it was not asked: where nothing is to be launched, because it serves already.
    """
    plan, serving = wanted["plan"], (read_record(wanted["state_dir"]) or {}).get("plan")
    same = bool(plan and serving and serving["digest"] == plan["digest"])
    if not plan or (same and serves(plan, docker.result(), vllm.result())):
        return {"plan": None, "serving": None}

    def ask(one: dict) -> list[list[str]]:
        return [list(row) for row in spark_rehearsal.rehearse(launcher.result(), one, wanted["container"], os.environ)]

    return {"plan": ask(plan), "serving": ask(serving) if serving and not same else None}


def serves(plan: dict, seen: dict, vllm: dict | None) -> bool:
    """Whether this host's container is the plan's, from today's image, and answers to its name."""
    ours = spark_docker.is_of(plan, seen["container"], seen["images"])
    return ours and plan["served_name"] in (vllm or {}).get("models", [])


def look_at_disks(wanted: dict) -> dict:
    """{weights: {model: its entry}, scan: everything, where that is wanted}."""
    home, local = wanted["hf_home"], wanted["local_model_dirs"]
    scan = spark_cache.scan(home, local) if wanted["scan"] else None
    found = {entry["name"]: entry for entry in scan["models"]} if scan else {}
    for row in wanted["repos"]:
        # A scan tells what the main branch has.
        if row["revision"] or row["repo"] not in found:
            found[row["repo"]] = spark_cache.look(home, row["repo"], row["revision"], local)
    return {"weights": found, "scan": {"folders": scan["folders"]} if scan else None}


def look_at_docker(name: str, images: list[str]) -> dict:
    """The container, its processes, and the images; an unwell docker is an answer of its own."""
    try:
        container = spark_docker.container(name)
        found = spark_docker.processes(name) if container and container["running"] else []
        there = {image: spark_docker.image(image) or {} for image in dict.fromkeys(images)}
    except spark_docker.DockerError as error:
        nothing = {"container": None, "images": {}, "image_contents": {}, "pids": set()}
        return {"docker": {"ok": False, "error": str(error)}, **nothing}
    if container:
        container["serving_process"] = bool(spark_docker.working(found))
        container["ray"] = spark_docker.ray_node(found)
    pids = {process["pid"] for process in found}
    ids = {name: image.get("id") for name, image in there.items()}
    contents = {name: image.get("content") for name, image in there.items()}
    seen = {"container": container, "images": ids, "image_contents": contents, "pids": pids}
    return {"docker": {"ok": True, "error": None}, **seen}


def look_at_vllm(address: str, port: int) -> dict | None:
    """Which names the server answers to and how much it has in flight; None where nothing listens."""
    vllm = Vllm(address, port)
    models = vllm.models()
    return None if models is None else {"models": models, "in_flight": vllm.in_flight()}


def main() -> None:
    """Read, and answer."""
    repo = {"repo": {"type": "str", "required": True}, "revision": {"type": "str"}}
    module = AnsibleModule(
        {
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "container": {"type": "str", "required": True},
            "state_dir": {"type": "path", "required": True},
            "launcher_dir": {"type": "path", "required": True},
            "hf_home": {"type": "path", "required": True},
            "meminfo": {"type": "path", "default": "/proc/meminfo"},
            "images": {"type": "list", "elements": "str", "default": []},
            "repos": {"type": "list", "elements": "dict", "default": [], "options": repo},
            "local_model_dirs": {"type": "list", "elements": "path", "default": []},
            "scan": {"type": "bool", "default": False},
            "plan": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(changed=False, spark=look(module.params))
    except (OSError, KeyError, ValueError) as error:
        module.fail_json(msg=f"This host does not look like a Spark: {error}")


if __name__ == "__main__":
    main()
