"""PID 1 of a lab host: lays what a Spark has, starts sshd and dockerd, and keeps count of the simulated memory.

Reads /opt/lab/host.json: {"name", "password", "load_seconds", "models": [{"repo", "bytes", …}]}; a model has the words
of lay_model, and "only", the one host that has it. `spark_host.py models` lays the models again and does nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress

sys.dont_write_bytecode = True
sys.path.insert(0, "/opt/lab")

import lab_spark
import sim_host

HOME = "/home/spark"
CACHE = f"{HOME}/.cache/huggingface/hub"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 32768,
}


def main():
    """Lay, start, and stay."""
    facts = sim_host.read_json("/opt/lab/host.json")
    gpu(facts)
    lay(facts)
    subprocess.run(["chpasswd"], input=f"spark:{facts['password']}\n", text=True, check=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh/ssh_host_ed25519_key"], check=False)
    os.makedirs("/run/sshd", exist_ok=True)
    # A container of this host cannot have more open files than the host itself.
    services = [
        ["/usr/sbin/sshd", "-D", "-e", "-o", "UseDNS=no", "-o", "HostKey=/etc/ssh/ssh_host_ed25519_key"],
        ["/usr/sbin/dockerd", "--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"],
        ["/lib/systemd/systemd-logind"],
    ]
    # A logind without systemd as PID 1 opens no sessions, but it answers and keeps who lingers.
    for folder in ("dbus", "systemd/system", "systemd/seats", "systemd/users", "systemd/sessions"):
        os.makedirs(f"/run/{folder}", exist_ok=True)
    subprocess.run(["dbus-daemon", "--system", "--fork"], check=False)
    for command in services:
        subprocess.Popen(command)
    os.makedirs("/var/lib/systemd/linger", exist_ok=True)
    write("/var/lib/systemd/linger/spark", "")
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    spark = lab_spark.LabSpark(lab_spark.FOLDER)
    while True:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        spark.count()
        time.sleep(0.2)


def gpu(facts):
    """The folder that is this host's GPU and memory (lab_spark.py)."""
    for part in ("memory", "faults", "proc"):
        os.makedirs(os.path.join(lab_spark.FOLDER, part), exist_ok=True)
    host = {
        "name": facts["name"],
        "address": "0.0.0.0",
        "root": lab_spark.FOLDER,
        "mem_total_kb": 127535616,  # 121.6 GiB, what a GB10 reports
        "mem_baseline_kb": 5 << 20,
    }
    write(f"{lab_spark.FOLDER}/host.json", host)
    write(f"{lab_spark.FOLDER}/demo.json", {"load_seconds": facts["load_seconds"]})
    lab_spark.LabSpark(lab_spark.FOLDER).count()


def lay(facts):
    """This host's models, as its user's."""
    for model in facts["models"]:
        if model.pop("only", facts["name"]) == facts["name"]:
            lay_model(**model)
    subprocess.run(["chown", "-R", "spark:spark", HOME], check=True)


def lay_model(repo, bytes, shards=2, behaviour="ok", real=False):
    """A Hub cache folder whose shards have their real size and take no room (sparse files), unless they are real."""
    folder = f"{CACHE}/models--{repo.replace('/', '--')}"
    revision = hashlib.sha1(repo.encode()).hexdigest()
    names = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    snapshot = f"{folder}/snapshots/{revision}"
    write(f"{folder}/refs/main", revision)
    write(f"{snapshot}/config.json", CONFIG)
    write(f"{snapshot}/model.safetensors.index.json", {"weight_map": {name: name for name in names}})
    write(f"{snapshot}/demo.json", {"load_seconds": None, "behaviour": behaviour})
    os.makedirs(f"{folder}/blobs", exist_ok=True)
    for name in names:
        head = struct.pack("<Q", 8) + b"{}      "
        noise = random.Random(name).randbytes(bytes // shards - len(head)) if real else b""
        # As on the Hub, a blob's name is the sum of what is in it; of a sparse one that would take long.
        blob = hashlib.sha256(head + noise if real else f"{repo}/{name}".encode()).hexdigest()
        with open(f"{folder}/blobs/{blob}", "wb") as file:
            file.write(head + noise)
            file.truncate(bytes // shards)
        with suppress(FileExistsError):
            os.symlink(f"../../blobs/{blob}", f"{snapshot}/{name}")


def write(path, content):
    """Write a text, or anything else as JSON."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(content if isinstance(content, str) else json.dumps(content))


if __name__ == "__main__":
    if sys.argv[1:] == ["models"]:
        lay(sim_host.read_json("/opt/lab/host.json"))
    else:
        main()
