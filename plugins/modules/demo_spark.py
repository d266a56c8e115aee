#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lay, start, stop or remove one simulated Spark: its folder, its programs, its models, its containers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: demo_spark
short_description: One simulated DGX Spark as a folder and processes on this machine
description:
  - Lays C(<root>/<name>) with a home, a Hugging Face cache of sparse model files, and programs named C(docker), C(ssh),
    C(nvidia-smi) and C(launch-cluster.sh); starts the host's daemon and the containers that ran when it was last
    stopped.
  - Linux only. Needs no root. The role's README says what the programs do and how to make them fail.
options:
  state:
    description:
      - C(started) lays and starts, C(stopped) ends every process and keeps the files, C(absent) also deletes them.
    type: str
    choices: [started, stopped, absent]
    default: started
  root:
    description: The demo's folder. One that is not empty and has no C(.spark-demo) marker is never touched.
    type: path
    required: true
  name:
    description: The host's name and its folder's.
    type: str
    required: true
  address:
    description: The loopback address that the host's servers listen on.
    type: str
    required: true
  files:
    description: The role's files folder, which has the programs.
    type: path
    required: true
  python:
    description: The interpreter that runs the programs.
    type: path
    required: true
  launcher:
    description: Which shape of launch-cluster.sh the host has.
    type: str
    choices: [october, september, january]
    default: september
  load_seconds:
    description: How long a model takes to load, unless its own demo.json says otherwise.
    type: float
    default: 6
  models:
    description: What is in the Hugging Face cache.
    type: list
    elements: dict
    default: []
    suboptions:
      repo:
        description: The Hub repository.
        type: str
        required: true
      bytes:
        description: Size of all shards together.
        type: int
        required: true
      shards:
        description: How many shards.
        type: int
        default: 2
      room:
        description: Whether the shards take their room on the disk.
        type: bool
        default: false
      chat_template:
        description: How a chat is written, in Jinja.
        type: str
      state:
        description: >-
          C(downloading) lacks its last shard and has a partial file, C(partial) lacks it, C(metadata) has no shard.
        type: str
        choices: [complete, downloading, partial, metadata]
        default: complete
      config:
        description: The model's config.json.
        type: dict
        default: {}
      demo:
        description: The model's demo.json, C(load_seconds) and C(behaviour).
        type: dict
        default: {}
  hub:
    description: >-
      A local Hugging Face Hub, run beside this host, with C(port), C(rate) (bytes a second), C(address) and C(models),
      which are as in O(models) and may be C(gated).
    type: dict
  services:
    description: >-
      Services beside the models, each with C(program) (of run.py), C(port) and C(arguments). They end with the host.
    type: list
    elements: dict
    default: []
  images:
    description: The container images, each with C(id), C(tags), C(created) (epoch) and C(size) (bytes).
    type: list
    elements: dict
    default: []
attributes:
  check_mode:
    description: Says what would change and changes nothing.
    support: full
  diff_mode:
    description: Lists the files and processes.
    support: full
  idempotent:
    description: What is laid and runs already is left alone.
    support: full
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: Lay and start a simulated Spark
  spark.control.demo_spark:
    root: /tmp/demo
    name: spark1
    address: 127.0.0.11
    files: "{{ role_path }}/files"
    python: "{{ ansible_playbook_python }}"
"""

RETURN = r"""
state:
  description: The state that holds now.
  type: str
  returned: always
folder:
  description: The host's folder.
  type: str
  returned: always
changes:
  description: What was laid, started, stopped or removed, a short line each.
  type: list
  elements: str
  returned: always
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, nullcontext, suppress

from ansible.module_utils.basic import AnsibleModule

MARKER = ".spark-demo"
MEM_TOTAL_KB = 127535616  # 121.6 GiB, what a GB10 reports
MEM_BASELINE_KB = 5 << 20  # DGX OS idle
PROGRAMS = ("docker", "nvidia-smi", "ssh", "scp", "loginctl", "busctl")


class Spark:
    """A simulated host: compares what is there with what shall be, and notes each change."""

    def __init__(self, module):
        self.module = module
        self.check = module.check_mode
        self.p = module.params
        self.root = os.path.realpath(self.p["root"])
        self.folder = os.path.join(self.root, self.p["name"])
        self.changes = []

    # --- states ---------------------------------------------------------------------------------------------------

    def started(self):
        if not self.check:
            os.makedirs(self.root, exist_ok=True)
        # The look at the marker is under the lock too: the other host may be in the midst of making it.
        with nullcontext() if self.check else locked(self.root):
            marker = os.path.join(self.root, MARKER)
            if os.path.isdir(self.root) and os.listdir(self.root) and not os.path.exists(marker):
                self.module.fail_json(
                    msg=f"{self.root} is not empty and is no demo root (it has no {MARKER}): choose another folder."
                )
            self.write(marker, "The simulated Sparks of Spark Control. playbooks/demo.yml lays and removes this.\n")
            self.lay_shared()
        self.lay_host()
        self.lay_models()
        self.lay_hub()
        self.start()
        self.start_hub()
        self.start_services()

    def stopped(self):
        """End every process of this host. What ran is kept in the containers' folders for the next start."""
        if not os.path.exists(os.path.join(self.folder, "host.json")):
            return
        containers, host_module, _hostd = self.programs()
        host = host_module.Host(self.folder)
        ours = host_module.tagged(host_module.ENV_HOST, host.folder)
        if host.off and not ours:
            return
        self.note(f"stopped {self.p['name']}: {len(ours)} processes")
        if self.check:
            return
        host_module.write_atomic(host.path("off"), f"{int(time.time())}\n")
        for container in containers.containers(host):
            for name in os.listdir(container.path("execs")):
                record = host_module.read_json(container.path("execs", name))
                if host_module.ticks(record["pid"]) != record["ticks"]:
                    os.unlink(container.path("execs", name))  # it had ended by itself
        deadline = time.monotonic() + 10
        while pids := host_module.tagged(host_module.ENV_HOST, host.folder):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                self.module.fail_json(msg=f"{self.p['name']}: these processes don't end: {pids}")
            time.sleep(0.02)
        host.refresh_memory()

    def absent(self):
        if not os.path.lexists(self.root):
            return
        if not os.path.exists(os.path.join(self.root, MARKER)):
            self.module.fail_json(msg=f"{self.root} is no demo root (it has no {MARKER}): it is left as it is.")
        self.stopped()
        if self.check:
            self.note(f"removed {self.folder}")
            return
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.root))
            except FileNotFoundError:
                return  # another host was the last
            if os.path.isdir(self.folder):
                self.note(f"removed {self.folder}")
                shutil.rmtree(self.folder)
            left = [
                name for name in os.listdir(self.root) if os.path.exists(os.path.join(self.root, name, "host.json"))
            ]
            if not left:
                self.note(f"removed {self.root}")
                shutil.rmtree(self.root)

    # --- laying ---------------------------------------------------------------------------------------------------

    def lay_shared(self):
        """What all hosts of a root share: the programs' code, the demo's recipes, how long loading takes."""
        files, python = self.p["files"], shell_word(self.p["python"])
        for name in sorted(os.listdir(os.path.join(files, "lib"))):
            if name.endswith(".py"):
                self.copy(os.path.join(files, "lib", name), os.path.join(self.root, "lib", name))
        for name in sorted(os.listdir(os.path.join(files, "container-bin"))):
            self.copy(
                os.path.join(files, "container-bin", name), os.path.join(self.root, "lib", "container-bin", name), 0o755
            )
        run = shell_word(os.path.join(self.root, "lib", "run.py"))
        folder = os.path.join(self.root, "lib", "container-bin")
        self.write(
            os.path.join(folder, "vllm"), f'#!/bin/sh\nexec {python} -SE {run} "$SPARK_SIM_HOST" vllm "$@"\n', 0o755
        )
        self.lay_hf(folder)
        self.write(os.path.join(folder, "python3"), f'#!/bin/sh\nexec {python} -SE "$@"\n', 0o755)
        for name in sorted(os.listdir(os.path.join(files, "recipes"))):
            self.copy(os.path.join(files, "recipes", name), os.path.join(self.root, "recipes", name))
        self.write(os.path.join(self.root, "demo.json"), json.dumps({"load_seconds": self.p["load_seconds"]}) + "\n")

    def lay_hf(self, folder):
        """The real `hf` in the image, where this machine has it (the project's extra `demo`)."""
        program = os.path.join(os.path.dirname(self.p["python"]), "hf")
        if os.access(program, os.X_OK):
            self.write(os.path.join(folder, "hf"), f'#!/bin/sh\nexec {shell_word(program)} "$@"\n', 0o755)

    def lay_host(self):
        facts = {
            "name": self.p["name"],
            "address": self.p["address"],
            "root": self.root,
            "mem_total_kb": MEM_TOTAL_KB,
            "mem_baseline_kb": MEM_BASELINE_KB,
        }
        for part in (
            "proc",
            "memory",
            "faults",
            "docker/containers",
            "docker/names",
            "home/.cache/huggingface/hub",
            "home/spark-vllm-docker",
        ):
            self.directory(os.path.join(self.folder, part))
        for name in PROGRAMS:
            words = (self.p["python"], "-SE", os.path.join(self.root, "lib", "run.py"), self.folder, name)
            self.write(self.at("bin", name), f'#!/bin/sh\nexec {" ".join(map(shell_word, words))} "$@"\n', 0o755)
        if not os.path.exists(self.at("docker", "images.json")) or self.images_differ():
            self.write(self.at("docker", "images.json"), json.dumps(self.p["images"], indent=1) + "\n")
        launcher = os.path.join(self.p["files"], f"launch-cluster-{self.p['launcher']}.sh")
        self.copy(launcher, self.at("home", "spark-vllm-docker", "launch-cluster.sh"), 0o755)
        parts = os.path.join(self.p["files"], "launcher-parts.sh")
        self.copy(parts, self.at("home", "spark-vllm-docker", "launcher-parts.sh"))
        self.write(
            self.at("home", "spark-vllm-docker", "mods", "demo-note", "run.sh"),
            '#!/bin/bash\necho "A mod of the demo: nothing to patch."\n',
            0o755,
        )
        self.write(self.at("address"), self.p["address"] + "\n")
        self.write(self.at("host.json"), json.dumps(facts) + "\n")  # last: its presence says that the host is whole

    def images_differ(self):
        """An image that was tagged since (`docker tag`) is no difference."""
        with open(self.at("docker", "images.json")) as file:
            there = {image["id"]: image for image in json.load(file)}
        return any(image["id"] not in there for image in self.p["images"])

    def lay_models(self):
        for model in self.p["models"]:
            self.lay_model(model)

    def lay_model(self, model):
        """A repository in the Hub cache's own shape. Shards have their real size and take no room (sparse files)."""
        repo, total, count = model["repo"], model["bytes"], model["shards"]
        folder = self.at("home", ".cache", "huggingface", "hub", "models--" + repo.replace("/", "--"))
        revision = hashlib.sha1(repo.encode()).hexdigest()
        snapshot = os.path.join(folder, "snapshots", revision)
        self.write(os.path.join(folder, "refs", "main"), revision)
        names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        texts = self.texts(model, names)
        for name, text in texts.items():
            etag = hashlib.sha1(text.encode()).hexdigest()
            self.write(os.path.join(folder, "blobs", etag), text)
            self.link(os.path.join(snapshot, name), f"../../blobs/{etag}")
        if not os.path.exists(os.path.join(snapshot, "demo.json")):  # a test's own is left
            self.write(os.path.join(snapshot, "demo.json"), behaviour(model))
        state = model["state"]
        present = {"complete": names, "metadata": []}.get(state, names[:-1])
        for name in present:
            etag = hashlib.sha256(f"{repo}/{name}".encode()).hexdigest()
            self.sparse(os.path.join(folder, "blobs", etag), total // count, room=model.get("room", False))
            self.link(os.path.join(snapshot, name), f"../../blobs/{etag}")
        if state == "downloading":
            etag = hashlib.sha256(f"{repo}/{names[-1]}".encode()).hexdigest()
            self.sparse(os.path.join(folder, "blobs", f"{etag}.0a1b2c3d.incomplete"), int(total // count * 0.6))

    def texts(self, model, names):
        """A model's small files: {name: text}."""
        index = {
            "metadata": {"total_size": model["bytes"]},
            "weight_map": {f"model.layers.{number}.weight": name for number, name in enumerate(names)},
        }
        texts = {
            "config.json": model["config"],
            "generation_config.json": {"transformers_version": "5.0.0"},
            "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **chat_template(model)},
            "tokenizer.json": {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}},
            "model.safetensors.index.json": index,
        }
        return {name: json.dumps(value, indent=2) + "\n" for name, value in texts.items()}

    def lay_hub(self):
        """The local Hub's repos: small files and sparse shards, each with a content of its own."""
        for model in (self.p["hub"] or {}).get("models", []):
            folder = os.path.join(self.root, "hub", model["repo"])
            count = model.get("shards", 2)
            names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
            for name, text in self.texts(model, names).items():
                self.write(os.path.join(folder, name), text)
            self.write(os.path.join(folder, "demo.json"), behaviour(model))
            self.write(os.path.join(folder, ".hub.json"), json.dumps({"gated": bool(model.get("gated"))}) + "\n")
            for name in names:
                self.sparse(os.path.join(folder, name), model["bytes"] // count, name)

    # --- running --------------------------------------------------------------------------------------------------

    def start(self):
        """Switch the host on: the containers that ran, then the daemon. A host that was killed is the same."""
        if self.check:
            if not os.path.exists(self.at("host.json")):
                self.note("started its daemon")
                return
            containers, host_module, hostd = self.programs()
            if not hostd.running(host_module.Host(self.folder)):
                self.note("started its daemon")
            return
        containers, host_module, hostd = self.programs()
        host = host_module.Host(self.folder)
        if not hostd.running(host):
            for container in containers.containers(host):
                if not container.running:
                    self.note(f"started container {container.name} again")
                    container.resume()
            with suppress(FileNotFoundError):
                os.unlink(host.path("off"))
            hostd.start(host, self.p["python"])
            self.note("started its daemon")
        host.refresh_memory()

    def start_hub(self):
        """Run the local Hub on this host."""
        if wish := self.p["hub"]:
            words = ["--port", str(wish["port"]), "--rate", str(wish["rate"]), "--root", os.path.join(self.root, "hub")]
            self.start_program("hub", wish["address"], int(wish["port"]), words)

    def start_services(self):
        """Run the services beside the models on this host."""
        for wish in self.p["services"]:
            words = [str(word) for word in wish.get("arguments") or ()]
            self.start_program(wish["program"], self.p["address"], int(wish["port"]), words)

    def start_program(self, program, address, port, arguments):
        """Run one of lib/run.py's servers as a process of this host, so that it ends with it; wait until it listens."""
        if listens(address, port):
            return
        self.note(f"started {program} at http://{address}:{port}")
        if self.check:
            return
        command = [self.p["python"], "-SE", os.path.join(self.root, "lib", "run.py"), self.folder, program]
        subprocess.Popen(
            [*command, "--host", address, *arguments],
            env={"PATH": "/usr/bin:/bin", "SPARK_SIM_HOST": self.folder, "SPARK_SIM_ROOT": self.root},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 10
        while not listens(address, port):
            if time.monotonic() > deadline:
                self.module.fail_json(msg=f"{program} does not listen on {address}:{port}.")
            time.sleep(0.02)

    def programs(self):
        """The programs' own modules, so that starting and stopping is what `docker` itself does."""
        sys.path.insert(0, os.path.join(self.p["files"], "lib"))
        sys.dont_write_bytecode = True
        import sim_containers
        import sim_host
        import sim_hostd

        return sim_containers, sim_host, sim_hostd

    # --- small steps ----------------------------------------------------------------------------------------------

    def at(self, *parts):
        return os.path.join(self.folder, *parts)

    def note(self, text):
        self.changes.append(text)

    def directory(self, path):
        if not os.path.isdir(path):
            self.note(f"made {path}")
            if not self.check:
                os.makedirs(path, exist_ok=True)

    def copy(self, source, target, mode=0o644):
        with open(source) as file:
            self.write(target, file.read(), mode)

    def write(self, path, text, mode=0o644):
        try:
            with open(path) as file:
                same = file.read() == text and os.stat(path).st_mode & 0o777 == mode
        except FileNotFoundError:
            same = False
        if same:
            return
        self.note(f"wrote {path}")
        if self.check:
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{os.getpid()}.new"
        with open(temporary, "w") as file:
            file.write(text)
        os.chmod(temporary, mode)
        os.replace(temporary, path)

    def link(self, path, target):
        if os.path.islink(path) and os.readlink(path) == target:
            return
        self.note(f"linked {path}")
        if self.check:
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.symlink(target, path)

    def sparse(self, path, size, name=None, room=False):
        """A safetensors file of `size` bytes: a header without tensors but perhaps with a name, and a hole.

        With `room` the hole takes its room on the disk, so that a delete gives it back.
        """
        if os.path.exists(path) and os.path.getsize(path) == size:
            return
        self.note(f"laid {path}")
        if self.check:
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            header = json.dumps({"__metadata__": {"name": name}} if name else {}).encode().ljust(8)
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(size)
            if room:
                os.posix_fallocate(file.fileno(), 0, size)


@contextmanager
def locked(root):
    """One host at a time works on what all share. Raises FileNotFoundError when there is no root."""
    # The folder itself is locked: a file for it would lie in a folder that may be somebody else's.
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def chat_template(model):
    """The part of tokenizer_config.json that tells how a chat is written, where the model has one."""
    return {"chat_template": model["chat_template"]} if model.get("chat_template") else {}


def behaviour(model):
    """A model's demo.json."""
    return json.dumps({"load_seconds": None, "behaviour": "ok", **(model.get("demo") or {})}) + "\n"


def listens(address, port):
    """Does anything accept connections there?"""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((address, int(port))) == 0


def shell_word(text):
    return "'" + text.replace("'", "'\\''") + "'"


def main():
    model = {
        "repo": {"type": "str", "required": True},
        "bytes": {"type": "int", "required": True},
        "shards": {"type": "int", "default": 2},
        "room": {"type": "bool", "default": False},
        "chat_template": {"type": "str"},
        "state": {"type": "str", "choices": ["complete", "downloading", "partial", "metadata"], "default": "complete"},
        "config": {"type": "dict", "default": {}},
        "demo": {"type": "dict", "default": {}},
    }
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "stopped", "absent"], "default": "started"},
            "root": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "files": {"type": "path", "required": True},
            "python": {"type": "path", "required": True},
            "launcher": {"type": "str", "choices": ["october", "september", "january"], "default": "september"},
            "load_seconds": {"type": "float", "default": 6},
            "models": {"type": "list", "elements": "dict", "options": model, "default": []},
            "hub": {"type": "dict"},
            "services": {"type": "list", "elements": "dict", "default": []},
            "images": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    spark = Spark(module)
    getattr(spark, module.params["state"])()
    result = {
        "changed": bool(spark.changes),
        "changes": spark.changes,
        "state": module.params["state"],
        "folder": spark.folder,
    }
    if module._diff and spark.changes:
        result["diff"] = {"prepared": "\n".join(spark.changes) + "\n"}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
