"""A playbook of the collection needs no folder, no ansible.cfg and no word of where its roles and plugins are."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile

import pytest

from tests.conftest import PROJECT
from tests.support import BIN, Server, wait_for

# The venv with ansible-core alone is made once, by the worker that has this file.
pytestmark = pytest.mark.xdist_group("collection")


def from_the_root(cluster, playbook: str, *arguments: str) -> subprocess.CompletedProcess:
    """ansible-playbook in `/`, where no ansible.cfg is."""
    command = [BIN / "ansible-playbook", PROJECT / "playbooks" / f"{playbook}.yml", *arguments]
    return subprocess.run(command, env=cluster.environment, cwd="/", capture_output=True, text=True, check=False)


def test_a_swap_from_another_folder_ends_in_its_sentence(cluster):
    preview = from_the_root(cluster, "swap", "-e", "model=demo-small", "--check")
    assert preview.returncode == 0, preview.stdout + preview.stderr
    assert preview.stdout.splitlines()[-1].startswith("Demo: small starts on spark1"), preview.stdout
    assert cluster.models() == []
    done = from_the_root(cluster, "swap", "-e", "model=demo-small")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("Demo: small serves on spark1"), done.stdout
    assert cluster.models() == ["demo-small"]


def test_a_refusal_is_the_last_line_too(cluster):
    done = from_the_root(cluster, "swap", "-e", "model=nobody-knows")
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1].startswith("There is no recipe named nobody-knows."), done.stdout


def last_line(done: subprocess.CompletedProcess) -> str:
    """What stands last on the terminal."""
    return done.stdout.rstrip("\n").splitlines()[-1]


def by_the_page(cluster, installed):
    server = Server(cluster)
    try:
        status, job = wait_for(
            lambda: (answer := server.ask("POST", "/api/swap", {"model": "demo-small"}))[0] != 503 and answer,
            what="the first look at the Sparks",
        )
        assert status == 202, job
        return server.ended(job["job_id"])["result"]["message"]
    finally:
        server.stop()


def by_spark_control(cluster, installed):
    command = [BIN / "spark-control", "run", "swap", "-e", "model=demo-small"]
    done = subprocess.run(command, env=cluster.environment, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def by_ansible_core_alone(cluster, installed):
    playbook = PROJECT / "playbooks/swap.yml"
    done = installed.run(
        "ansible-playbook", playbook, "-e", "model=demo-small", environment=cluster.environment, found=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return last_line(done)


def by_the_installed_collection(cluster, installed):
    done = installed.run(
        "ansible-playbook", "spark.control.swap", "-e", "model=demo-small", environment=cluster.environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return last_line(done)


ROADS = [by_the_page, by_spark_control, by_ansible_core_alone, by_the_installed_collection]


@pytest.mark.parametrize("road", ROADS, ids=lambda road: road.__name__)
def test_four_roads_to_the_same_swap(cluster, installed, road):
    assert "Demo: small serves on spark1" in road(cluster, installed)
    assert cluster.models() == ["demo-small"]


@pytest.mark.parametrize("found", [True, False], ids=["installed", "checkout"])
def test_a_run_that_fails_before_its_result_ends_in_a_sentence(installed, tmp_path, found):
    hosts = tmp_path / "hosts.yml"
    hosts.write_text("all: {children: {vllm: {hosts: {spark1: {ansible_host: 127.0.0.1, ansible_port: 1}}}}}\n")
    playbook = "spark.control.{}" if found else f"{PROJECT}/playbooks/{{}}.yml"

    def run(operation, *words):
        return installed.run("ansible-playbook", playbook.format(operation), *words, found=found)

    refused = run("swap", "-i", hosts)
    assert (refused.returncode != 0, last_line(refused)) == (
        True,
        "swap did not start: missing required arguments: model.",
    )
    away = run("gpu_lease", "-i", hosts, "-e", "holder=me")
    assert away.returncode != 0
    assert last_line(away).startswith("spark1 does not answer: ")
    nobody = run("swap", "-i", "spark1,", "-e", "model=x")
    assert (nobody.returncode, last_line(nobody)) == (2, "swap could not run: the inventory names no host for it.")


def test_a_kept_connection_notices_that_its_host_vanished(installed, tmp_path):
    ssh, log = tmp_path / "ssh", tmp_path / "log"
    ssh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {log}\nexit 255\n')
    ssh.chmod(0o755)
    hosts = tmp_path / "hosts.yml"
    own = {"ansible_ssh_executable": str(ssh), "ansible_ssh_common_args": "-o ServerAliveInterval=77 -J jump"}
    groups = {name: {"hosts": {"spark1": own}} for name in ("sparks", "vllm")}
    hosts.write_text(json.dumps({"all": {"children": groups}}))
    installed.run("ansible-playbook", "spark.control.gpu_lease", "-i", hosts, "-e", "holder=me")
    said = log.read_text()
    assert "-o ServerAliveInterval=5 -o ServerAliveCountMax=2" in said
    assert said.index("-o ServerAliveInterval=77 -J jump") < said.index("ServerAliveInterval=5")


def test_what_is_built_is_the_collection_and_nothing_of_a_person(installed, tmp_path):
    checkout = tmp_path / "checkout"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True)
    for name in files.stdout.rstrip("\0").split("\0"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, checkout / name, follow_symlinks=False)
    mine = [
        "inventory/recipes/mine.yaml", "inventory/group_vars/all/settings.yml", "inventory/host_vars/spark1.yml",
        "inventory/demo/group_vars/all/settings.yml", "var/jobs/x/job.json", ".venv/bin/python",
        "roles/vllm/.ansible/x",
        "plugins/__pycache__/x.pyc",
    ]  # fmt: skip
    for name in mine:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("mine")
    with tarfile.open(installed.build(checkout, "mine")) as built:
        names = set(built.getnames())
    assert not names & set(mine)
    tops = {name.split("/")[0] for name in names}
    assert tops == {
        "MANIFEST.json", "FILES.json", "CHANGELOG.md", "LICENSE", "README.md", "docs", "inventory", "meta", "playbooks",
        "plugins", "recipes", "roles",
    }  # fmt: skip
    assert not [
        name for name in names if "collections" in name.split("/") or "__pycache__" in name or "molecule" in name
    ]
    assert {"playbooks/callback_plugins/outcome.py", "inventory/hosts.yml", "recipes/README.md"} <= names


def test_what_a_person_saves_lies_beside_the_inventory_and_outlives_an_upgrade(installed, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in installed.place.rglob("*") if "__pycache__" not in str(path)}
    hosts = tmp_path / "hosts.yml"
    hosts.write_text("all: {children: {sparks: {hosts: {spark1: {ansible_connection: local}}}}}\n")
    other = tmp_path / "other.yml"
    other.write_text(hosts.read_text())
    recipe = {
        "name": "Mine",
        "model": "org/mine",
        "container": "vllm-node",
        "command": "vllm serve org/mine --port {port}",
    }
    wish = ["-e", json.dumps({"model": "mine", "recipe": recipe | {"solo_only": True}})]
    refused = installed.run("ansible-playbook", "spark.control.save_recipe", "-i", hosts, "-i", other, *wish)
    assert refused.returncode != 0
    assert last_line(refused).startswith(
        "The recipe was not saved: It would lie beside the inventory, and there is not one"
    )
    saved = installed.run("ansible-playbook", "spark.control.save_recipe", "-i", hosts, *wish)
    path = tmp_path / "recipes/mine.yaml"
    assert last_line(saved) == f"mine is saved as {path}.", saved.stdout + saved.stderr
    assert {
        path: path.stat().st_mtime_ns for path in installed.place.rglob("*") if "__pycache__" not in str(path)
    } == before
    (tmp_path / "recipes/gemma-4-26b-a4b.yaml").write_text(path.read_text())
    text = path.read_bytes()
    installed.install(installed.build())
    assert path.read_bytes() == text
    again = installed.run("ansible-playbook", "spark.control.save_recipe", "-i", hosts, *wish)
    assert last_line(again) == f"mine is there already, as {path}."


MODULES = sorted(f"spark.control.{path.stem}" for path in PROJECT.glob("plugins/modules/*.py"))
ROLES = sorted(f"spark.control.{path.parent.parent.name}" for path in PROJECT.glob("roles/*/meta/argument_specs.yml"))


@pytest.mark.parametrize("where", ["installed", "checkout"])
@pytest.mark.parametrize(("kind", "names"), [("module", MODULES), ("role", ROLES)], ids=["modules", "roles"])
def test_ansible_doc_knows_every_name(installed, where, kind, names):
    beside = [] if where == "installed" else ["--playbook-dir", PROJECT / "playbooks"]
    done = installed.run("ansible-doc", "-t", kind, "--json", *beside, *names, found=where == "installed")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert sorted(told) == names
    assert all(entry.get("doc") or entry.get("entry_points") for entry in told.values())
