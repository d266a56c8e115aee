"""What the web tests stand on: a project of small playbooks that really run, and jobs laid down as files."""

import json
import os
import time

import pytest
from ansible_collections.spark.control.plugins.module_utils import spark_menu

from tests.support import wait_for
from webui.app import create_app

GB = 2**30
NODES = ["spark1", "spark2"]
GIB = 1024**3
ROLE = """\
argument_specs:
  swap:
    short_description: Swap the model
    options:
      model: {type: str, required: true, description: The model.}
      force: {type: bool, default: false, description: Although reserved.}
  stop_model:
    short_description: Stop the model
    options:
      force: {type: bool, default: false, description: Although reserved.}
  gpu_lease:
    short_description: Reserve the GPUs
    options:
      state: {type: str, choices: [present, absent], default: present, description: Take or give back.}
      holder: {type: str, description: Who.}
      purpose: {type: str, description: What for.}
      seconds: {type: float, description: How long.}
      token_hash: {type: str, description: SHA-256 of the token.}
  probe:
    short_description: Look at the Sparks
    options: {}
  download_weights:
    options:
      repo: {type: str, required: true}
      revision: {type: str}
      host: {type: str}
      copy_to: {type: list, elements: str}
  copy_weights:
    options:
      repo: {type: str, required: true}
      source: {type: str}
      to: {type: list, elements: str}
      verify: {type: str, choices: [size, hash]}
  delete_weights:
    options:
      repo: {type: str}
      path: {type: str}
      hosts: {type: list, elements: str}
  suggest_recipe:
    options:
      model: {type: str, required: true}
      nodes: {type: int}
  save_recipe:
    options:
      model: {type: str, required: true}
      recipe: {type: dict, required: true}
"""
TASKS = """\
- name: Wait until a file is there
  ansible.builtin.wait_for: {path: "%(go)s", timeout: 20}
  when: not ansible_check_mode and "%(operation)s" in ("swap", "stop_model")
- name: Give the result
  ansible.builtin.set_stats:
    data:
      result: "{{ lookup('ansible.builtin.file', '%(result)s') | from_json }}"
    per_host: false
"""
INVENTORY = """\
all:
  vars: {ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}", vllm_port: 9}
  children:
    sparks: {hosts: {spark1: {ansible_host: 127.0.0.1}, spark2: {ansible_host: 127.0.0.1}}}
    vllm: {hosts: {spark1: , spark2: }}
"""
OPERATIONS = ("probe", "swap", "stop_model", "gpu_lease", "download_weights", "copy_weights", "delete_weights")
OPERATIONS += ("suggest_recipe", "save_recipe")


def spark(host, **more):
    """A healthy Spark, as a probe tells it."""
    return {
        "host": host,
        "address": "127.0.0.1",
        "reachable": True,
        "error": None,
        "memory": {"total": 122 * GIB, "available": 46 * GIB, "model": 64 * GIB},
        "gpu": {"name": "GB10", "utilization": 41, "temperature": 54, "power": 38.0},
        "disk": {"path": "/", "total": 4000 * GB, "free": 1560 * GB},
        "docker": {"ok": True, "error": None},
        "launcher": {"path": "~/spark-vllm-docker", "present": True},
        "container": None,
        "folders": [{"path": "/hf/hub", "kind": "cache", "models": 4, "reason": ""}],
        **more,
    }


def entry(name, size, state="complete", **more):
    """A model on one disk, as a scan tells it."""
    known = {
        "name": name,
        "kind": "cache",
        "repo": name,
        "path": f"/hf/hub/{name}",
        "snapshot": None,
        "revision": "abc",
    }
    known |= {"revisions": 1, "bytes": size, "frees": size, "weights_bytes": size, "files": 9, "state": state}
    known |= {"progress": None, "missing": [], "missing_count": 0, "reason": "", "last_used": None, "facts": {}}
    return known | more


DISK = [
    entry("Qwen/Qwen3.6", 37 * GB),
    entry("nvidia/Gemma-4", 17 * GB, facts={"vision": {"value": True, "file": "config.json", "key": "vision_config"}}),
    entry("meta/Scout", 61 * GB, "partial", reason="84 % of it is there"),
    entry("me/tuned", 8 * GB),
]


def recipe(name, title, repo, **more):
    """A readable recipe, as a probe tells it."""
    return {
        "name": name,
        "title": title,
        "description": "A model for the tests.",
        "repo": repo,
        "revision": None,
        "served_name": name,
        "image": "vllm-node",
        "mode": "solo",
        "min_nodes": 1,
        "max_nodes": 1,
        "vision": False,
        "quantization": "FP8",
        "source": f"recipes/{name}.yaml",
        "error": None,
        "fits": {"ok": True, "message": "It needs 96 GB and 116 GB are free."},
        **more,
    }


SERVING = {
    "model": "qwen",
    "title": "Qwen3.6 35B",
    "repo": "Qwen/Qwen3.6",
    "served_name": "qwen",
    "mode": "solo",
    "nodes": ["spark1"],
    "since": 1_700_000_000,
    "digest": "sha256:1",
    "port": 9,
    "ready": True,
}


def probe(disks=None, **more):
    """A probe's result: two Sparks, five recipes in every state, one model without; disks: {host: [entry]}."""
    found = _probe(**more)
    disks = {host: {row["name"]: row for row in rows} for host, rows in (disks or dict.fromkeys(NODES, DISK)).items()}
    fits = {row["name"]: row["fits"] for row in found["recipes"]}
    placed = [row | {"placement": _placement(row)} for row in found["recipes"]]
    return found | {"models": spark_menu.menu(placed, disks, fits)}


def _placement(row):
    """Where a recipe would run on two Sparks."""
    return {"nodes": [{"host": host} for host in NODES[: row.get("min_nodes") or 1]]} if row["name"] != "huge" else None


def _probe(**more):
    broken = "recipes/broken.yaml: the field command is missing; expected text."
    return {
        "operation": "probe",
        "ok": True,
        "changed": False,
        "message": "2 of 2 Sparks answer.",
        "at": time.time() - 20,
        "recipe_dirs": [],
        "recipes": [
            recipe("qwen", "Qwen3.6 35B", "Qwen/Qwen3.6"),
            recipe("gemma", "Gemma 4 26B-A4B", "nvidia/Gemma-4", vision=True, quantization="NVFP4"),
            recipe("scout", "Llama 4 Scout", "meta/Scout"),
            recipe("huge", "Qwen3.5 397B", "Qwen/Qwen3.5", mode="cluster", min_nodes=4, max_nodes=4),
            recipe(
                "big",
                "Big <b>One</b>",
                "Qwen/Qwen3.6",
                fits={"ok": False, "message": "It needs 130 GB and 116 GB are free."},
            ),
            {"name": "broken", "title": "broken", "repo": None, "error": broken, "fits": None},
        ],
        "sparks": [spark("spark1"), spark("spark2", memory={"total": 122 * GIB, "available": 113 * GIB, "model": 0})],
        "head": "spark1",
        "serving": {**SERVING, "since": time.time() - 11520},
        "lease": None,
        **more,
    }


def outcome(operation="swap", kind="preview", **more):
    """The result of a swap or a stop."""
    return {
        "operation": operation,
        "ok": kind not in ("refused", "rolled back", "nothing serving"),
        "changed": kind not in ("refused", "unchanged", "preview"),
        "outcome": kind,
        "reason": None,
        "model": "gemma",
        "title": "Gemma 4 26B-A4B",
        "message": "Qwen3.6 35B stops on spark1, then Gemma 4 26B-A4B starts on spark1.",
        "previous": SERVING,
        "serving": SERVING,
        "problems": [],
        "warnings": [],
        "arithmetic": [
            {
                "host": "spark1",
                "ok": True,
                "weights": 16 * GIB,
                "needs": 90 * GIB,
                "free": 110 * GIB,
                "held": 64 * GIB,
                "total": 122 * GIB,
                "message": "",
            }
        ],
        "stops": [{"model": "qwen", "title": "Qwen3.6 35B", "hosts": ["spark1"], "in_flight": 1}],
        "log_tail": [],
        "stories": {},
        **more,
    }


class Project:
    """A folder with an inventory, small real playbooks, and a state folder for jobs."""

    def __init__(self, folder):
        self.folder, self.state, self.go = folder, folder / "state", folder / "go"
        (folder / "results").mkdir()
        (folder / "playbooks").mkdir()
        (folder / "roles/small/tasks").mkdir(parents=True)
        (folder / "roles/small/meta").mkdir()
        (folder / "inventory").mkdir()
        (folder / "inventory/hosts.yml").write_text(INVENTORY)
        (folder / "ansible.cfg").write_text("[defaults]\ninventory = inventory/hosts.yml\nroles_path = roles\n")
        (folder / "roles/small/meta/argument_specs.yml").write_text(ROLE)
        for operation in OPERATIONS:
            values = {"go": self.go, "operation": operation, "result": folder / f"results/{operation}.json"}
            (folder / f"roles/small/tasks/{operation}.yml").write_text(TASKS % values)
            play = {
                "name": operation,
                "hosts": "localhost",
                "gather_facts": False,
                "tasks": [{"name": "Go", "import_role": {"name": "small", "tasks_from": operation}}],
            }
            (folder / f"playbooks/{operation}.yml").write_text(json.dumps([play]))
        self.gives("probe", probe())
        self.gives("swap", outcome())
        self.gives("stop_model", outcome("stop_model", "preview"))
        self.gives("gpu_lease", {"operation": "gpu_lease", "ok": True, "changed": True, "message": "", "lease": None})

    def gives(self, operation, result):
        """Have the playbook of an operation end with this result."""
        (self.folder / f"results/{operation}.json").write_text(json.dumps(result))

    def lay(self, operation, result, *, ago=60.0, status="successful", **more):
        """Lay down a finished job as files. Returns its id."""
        created = time.time() - ago
        job = time.strftime("%Y%m%d-%H%M%S", time.gmtime(created)) + f"-{int(created % 1 * 65536):04x}"
        folder = self.state / "jobs" / job
        folder.mkdir(parents=True)
        data = {
            "id": job,
            "operation": operation,
            "variables": {},
            "asked_by": "page",
            "created": created,
            "started": created,
            "ended": created + 4,
            "seconds": 4.0,
            "check": False,
            "background": operation == "probe",
            "command": f"ansible-playbook playbooks/{operation}.yml",
            "status": status,
            **more,
        }
        (folder / "job.json").write_text(json.dumps(data))
        if result is not None:
            (folder / "result.json").write_text(json.dumps(result))
        return job

    def app(self, **config):
        """The web app of this project."""
        return create_app(
            {
                "TESTING": True,
                "STATE_DIR": self.state,
                "PROJECT_DIR": self.folder,
                "INVENTORY": "inventory/hosts.yml",
                "TOKEN_FILE": None,
                **config,
            }
        )

    def client(self, **config):
        return self.app(**config).test_client()


@pytest.fixture
def web_project(tmp_path, monkeypatch):
    monkeypatch.delenv("ANSIBLE_INVENTORY", raising=False)
    monkeypatch.setenv("ANSIBLE_CONFIG", str(tmp_path / "ansible.cfg"))
    made = Project(tmp_path)
    yield made
    made.go.touch()
    for job in os.listdir(made.state / "jobs") if (made.state / "jobs").exists() else []:
        if not job.startswith("."):
            wait_for(lambda job=job: finished(made, job), what=f"the end of {job}")


def finished(project, job):
    """Whether a job has come to an end."""
    from webui.jobs import JobStore

    found = JobStore(project.state, project.folder).get(job)
    return found is None or found.finished
