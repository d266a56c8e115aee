#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: launch a planned model on the head Spark, detached from the session that asked for it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_launch
short_description: Launch a planned model through launch-cluster.sh
description:
  - Runs on the head; the launcher brings up the workers itself. The launcher gets a session of its own, so it goes on
    when the connection ends, and its output goes to a file.
  - Refuses to launch while a container of that name exists; the launcher would skip the launch and run the B(old)
    model's command again.
  - The container carries the plan's digest and name as labels, so what runs can be told from what was asked for.
attributes:
  check_mode: {support: full, description: Shows what would be launched.}
  diff_mode: {support: full, description: Shows the launch before and after.}
  idempotent: {support: full, description: A running container with the plan's digest is no change.}
options:
  plan: {type: dict, required: true, description: The plan that M(spark.control.recipe_plan) made.}
  launcher: {type: dict, required: true, description: What M(spark.control.spark_probe) found of the launcher.}
  container: {type: str, required: true, description: The container's name.}
  state_dir: {type: path, required: true, description: "Where the record, the launch log and script are kept."}
  hf_home: {type: path, required: true, description: The Hugging Face cache folder.}
  seconds: {type: float, default: 180, description: How long the launcher may take to bring the containers up.}
  job: {type: str, description: The job that launches it.}
  before: {type: dict, description: "The plan of what served before, for the diff."}
  local_model_dirs:
    type: list
    elements: path
    default: []
    description: Folders of local models. A plan's mounts must lie in one of them, links resolved.
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Start Gemma 4
  spark.control.vllm_launch:
    plan: "{{ planned.plan }}"
    launcher: "{{ seen.spark.launcher }}"
    container: vllm_node
    state_dir: ~/.spark-control
    hf_home: ~/.cache/huggingface
"""

RETURN = r"""
command: {description: The launcher's command line., returned: success, type: list}
launch_log: {description: Where its output goes., returned: success, type: str}
log_tail: {description: The last lines of its output., returned: failure, type: list}
reason: {description: C(launch_failed) or C(unreachable)., returned: failure, type: str}
"""

import contextlib
import json
import os
import signal
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils import spark_docker
from ansible_collections.spark.control.plugins.module_utils.spark_launcher import CannotCarry, LauncherCall, shape_of
from ansible_collections.spark.control.plugins.module_utils.spark_serving import (
    last_lines,
    last_words,
    launch_log,
    read_end,
    save_text,
    started,
    write_record,
)
from ansible_collections.spark.control.plugins.module_utils.spark_workers import Workers


class LaunchFailed(Exception):
    """The launcher did not bring the container up; the text says why, for a person, and `code` for a program."""

    def __init__(self, why: str, code: str = "launch_failed"):
        super().__init__(why)
        self.code = code


def launch(wish: dict, call: LauncherCall, log: str) -> None:
    """Start the launcher in a session of its own and wait until the container is up.

    Since September 2026 the launcher ends once its command is dispatched; January's stays for as long as the model
    runs, so there a running container with something in it is the sign.
    """
    plan = wish["plan"]
    if call.script is not None:
        save_text(script_path(wish), call.script, 0o700)
    record = {"plan": plan, "job": wish["job"], "launched": time.time(), "since": None}
    write_record(wish["state_dir"], record)
    save_text(log, b"")
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [wish["launcher"]["path"], *call.argv],
            env=os.environ | call.environment | {"HF_HOME": wish["hf_home"]},
            cwd=os.path.dirname(wish["launcher"]["path"]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    if not call.detached:
        stays = {"pid": process.pid, "started": started(process.pid)}
        write_record(wish["state_dir"], record | {"launcher": stays})
    try:
        wait_for_launcher(wish, call, process)
    except LaunchFailed:
        # It must not bring anything up behind our back; its own traps would stop containers by name.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    there = spark_docker.container(wish["container"])
    if not there or there["labels"].get(spark_docker.LABEL_DIGEST) != plan["digest"]:
        said = last_words(read_end(log))
        raise LaunchFailed(f"the launcher ended without bringing up the container {wish['container']}: {said}")


def wait_for_launcher(wish: dict, call: LauncherCall, process: subprocess.Popen) -> None:
    """Wait until the launcher has done its part. Raises LaunchFailed where it will not."""
    deadline = time.monotonic() + wish["seconds"]
    # Its own ssh to a worker that vanishes would hang for as long as TCP does.
    workers = Workers(wish["plan"]["nodes"][1:], wish["container"])
    try:
        while process.poll() is None:
            if not call.detached and spark_docker.serving_processes(wish["container"]):
                return
            if lost := workers.unreachable():
                raise LaunchFailed(f"{lost} stopped answering", "unreachable")
            if time.monotonic() > deadline:
                raise LaunchFailed(f"the launcher was still at it after {wish['seconds']:.0f} s")
            time.sleep(0.02)
    finally:
        workers.close()
    if process.returncode:
        said = last_words(read_end(launch_log(wish["state_dir"], wish["plan"]["model"])))
        raise LaunchFailed(f"the launcher gave up: {said}")


def script_path(wish: dict) -> str:
    """Where the launch script is put: beside the launch log, so that both can be read afterwards."""
    return os.path.join(wish["state_dir"], "launch", f"{wish['plan']['model']}.sh")


def check_mounts(plan: dict, folders: list[str]) -> None:
    """Raise LaunchFailed where a plan would mount anything but a folder of local models; docker would make an empty
    one where there is none."""
    homes = [os.path.realpath(folder).rstrip("/") + "/" for folder in folders]
    for mount in plan.get("mounts") or []:
        real = os.path.realpath(mount["source"])
        if not os.path.isdir(real):
            raise LaunchFailed(f"the model's folder {mount['source']} is not on this Spark")
        if not any(real.startswith(home) for home in homes):
            raise LaunchFailed(f"{mount['source']} lies in no folder of local models (local_model_dirs)")


def describe(plan: dict | None) -> str:
    """A plan as lines for the diff: what would run, where, with which environment."""
    if not plan:
        return ""
    shown = {key: plan[key] for key in ("model", "image", "mode", "env", "mods", "port")}
    shown |= {"nodes": [node["host"] for node in plan["nodes"]], "command": plan["argv"] or plan["script"]}
    if plan.get("mounts"):
        shown["mounts"] = [f"{mount['source']}, read-only" for mount in plan["mounts"]]
    return json.dumps(shown, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Launch, unless exactly this is already up."""
    module = AnsibleModule(
        {
            "plan": {"type": "dict", "required": True},
            "launcher": {"type": "dict", "required": True},
            "container": {"type": "str", "required": True},
            "state_dir": {"type": "path", "required": True},
            "hf_home": {"type": "path", "required": True},
            "seconds": {"type": "float", "default": 180},
            "job": {"type": "str"},
            "before": {"type": "dict"},
            "local_model_dirs": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    wish = module.params
    plan, log = wish["plan"], launch_log(wish["state_dir"], wish["plan"]["model"])
    diff = {"before": describe(wish["before"]), "after": describe(plan)}
    labels = [f"{spark_docker.LABEL_DIGEST}={plan['digest']}", f"{spark_docker.LABEL_MODEL}={plan['model']}"]
    try:
        check_mounts(plan, wish["local_model_dirs"])
        call = shape_of(wish["launcher"]).call(
            plan,
            container=wish["container"],
            docker_args=[word for label in labels for word in ("--label", label)],
            environment=os.environ,
            script_path=script_path(wish),
            ring=wish["launcher"]["dot_env"]["ring"],
        )
        command = [wish["launcher"]["path"], *call.argv]
        if not module.check_mode:
            there = spark_docker.container(wish["container"])
            if there and there["labels"].get(spark_docker.LABEL_DIGEST) == plan["digest"]:
                module.exit_json(changed=False, command=command, launch_log=log)
            if there:
                raise LaunchFailed(f"a container {wish['container']} is already there; it has to be stopped first")
            launch(wish, call, log)
    except (CannotCarry, LaunchFailed, spark_docker.DockerError) as error:
        tail = last_lines(read_end(log))
        reason = getattr(error, "code", "launch_failed")
        module.fail_json(msg=f"It was not launched: {error}.", reason=reason, log_tail=tail)
    module.exit_json(changed=True, command=command, launch_log=log, diff=diff)


if __name__ == "__main__":
    main()
