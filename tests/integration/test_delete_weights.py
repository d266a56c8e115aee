"""playbooks/delete_weights.yml on simulated Sparks: one refusal is everybody's, and the second run changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.spark.control.plugins.module_utils import spark_recipe_file

from tests.caches import WHOLE, model, repo_folder

RECIPE = """recipe_version: "1"
name: {name}
model: {repo}
container: vllm-node
command: vllm serve {repo}
"""


def inferred(name: str, repo: str) -> str:
    """A recipe as save_recipe writes it."""
    return spark_recipe_file.mark(RECIPE.format(name=name, repo=repo), repo, "2026-11-22")


def home(cluster, host: str) -> Path:
    """A simulated Spark's HF_HOME."""
    return cluster.root / host / "home/.cache/huggingface"


def disks(cluster) -> dict[str, tuple]:
    """Every file on every Spark's disk that is no log or record: path → (length, changed, link's text)."""
    found = {}
    for host in ("spark1", "spark2"):
        for path in (cluster.root / host / "home").rglob("*"):
            row = os.lstat(path)
            if ".spark-control" not in path.parts:
                found[str(path)] = (row.st_size, row.st_mtime_ns, os.readlink(path) if path.is_symlink() else None)
    return found


def refused(cluster, **wish):
    """Run it, see that it is refused and that nothing on any disk changed; returns the result."""
    before = disks(cluster)
    run = cluster.run("delete_weights", **wish)
    assert run.code != 0, run.output
    assert (run.result["outcome"], run.result["ok"], run.result["changed"]) == ("refused", False, False), run.output
    assert disks(cluster) == before
    assert run.result["message"] in run.output
    return run.result


def test_a_model_goes_from_every_spark_at_once(cluster):
    for host in ("spark1", "spark2"):
        model(home(cluster, host), "org/tuned", WHOLE, shared=True)
        model(home(cluster, host), "org/other", {"config.json": "{}"}, shared=True)
    card = cluster.state.parent / "recipes/tuned.yaml"
    card.parent.mkdir()
    card.write_text(inferred("tuned", "org/tuned"))
    mine = card.with_name("mine.yaml")
    mine.write_text(RECIPE.format(name="mine", repo="org/tuned"))
    wish = {"repo": "org/tuned", "recipe_dirs": [str(card.parent)]}

    before = disks(cluster)
    preview = cluster.run("delete_weights", "--check", "--diff", **wish)
    assert (preview.code, preview.result["outcome"], preview.result["changed"]) == (0, "preview", False), preview.output
    assert "-" + str(repo_folder(home(cluster, "spark2"), "org/tuned")) in preview.output
    assert preview.result["recipe_removed"] == "tuned"
    assert card.exists()
    assert disks(cluster) == before

    done = cluster.run("delete_weights", **wish)
    assert (done.code, done.result["outcome"], done.result["changed"]) == (0, "deleted", True), done.output
    assert [(row["host"], row["problem"]) for row in done.result["hosts"]] == [("spark1", None), ("spark2", None)]
    assert all(row["bytes"] > 12_000 for row in done.result["hosts"])
    assert done.result["bytes"] == preview.result["bytes"]
    assert (done.result["recipe_removed"], card.exists(), mine.exists()) == ("tuned", False, True)
    assert not list(cluster.root.rglob("*org--tuned*"))
    assert repo_folder(home(cluster, "spark1"), "org/other").is_dir()

    again = cluster.run("delete_weights", **wish)
    assert (again.code, again.result["outcome"], again.result["changed"]) == (0, "unchanged", False), again.output
    assert again.result["message"] == "org/tuned is not on spark1 and spark2."
    assert all(row["changed"] == 0 for row in again.recap.values())


def test_only_the_named_spark_loses_it_and_the_recipe_stays_for_the_other(cluster):
    for host in ("spark1", "spark2"):
        model(home(cluster, host), "org/tuned")
    cluster.recipe("tuned", inferred("tuned", "org/tuned"))
    dirs = [str(cluster.root / "recipes")]
    done = cluster.run("delete_weights", repo="org/tuned", hosts=["spark2"], recipe_dirs=dirs)
    assert [row["host"] for row in done.result["hosts"]] == ["spark2"], done.output
    assert repo_folder(home(cluster, "spark1"), "org/tuned").is_dir()
    assert not repo_folder(home(cluster, "spark2"), "org/tuned").exists()
    assert done.result["recipe_removed"] is None
    assert "Its inferred recipe stays, for spark1." in done.result["message"]
    assert (cluster.root / "recipes/tuned.yaml").exists()


def test_what_serves_and_what_is_being_swapped_to_stays(cluster):
    swapped = cluster.swap("demo-small")
    assert swapped.code == 0, swapped.output
    # It serves on spark1 alone; spark2's copy stays too.
    result = refused(cluster, repo="demo/second", hosts=["spark2"])
    assert (result["reason"], result["hosts"][0]["host"]) == ("serving", "spark2")
    assert "stop it or swap to another model first" in result["message"]
    lease = cluster.root / "spark1/home/.spark-control/lease.json"
    now = time.time()
    row = {"id": "x", "holder": "somebody", "purpose": "swap to Demo: two nodes", "taken": now, "expires": now + 600}
    lease.write_text(json.dumps(row | {"token_hash": None}))
    plan = cluster.root / "recipes/demo-pair.yaml"
    title = next(line.split(":", 1)[1].strip() for line in plan.read_text().splitlines() if line.startswith("name:"))
    lease.write_text(json.dumps(row | {"purpose": f"swap to {title.strip(chr(34))}", "token_hash": None}))
    assert "is part of a swap" in refused(cluster, repo="demo/pair")["message"]
    other = cluster.run("delete_weights", repo="demo/loads-slowly")
    assert (other.code, other.result["outcome"]) == (0, "deleted"), other.output


@pytest.mark.parametrize(
    ("wish", "field", "said"),
    [
        ({"repo": "../../etc"}, "repo", "is not a repo name"),
        ({"repo": "demo/second", "hosts": ["mars"]}, "hosts", "mars is no Spark here; there are spark1 and spark2"),
        ({}, "repo", "Name one model"),
        ({"path": "/etc"}, "path", "is in no folder of local models"),
    ],
)
def test_bad_input_is_refused_with_its_field(cluster, wish, field, said):
    result = refused(cluster, **wish)
    assert result["field"] == field
    assert said in result["message"]


def test_one_sparks_refusal_is_everybodys(cluster):
    for host in ("spark1", "spark2"):
        model(home(cluster, host), "org/tuned")
    partial = repo_folder(home(cluster, "spark2"), "org/tuned") / "blobs/abc.0a1b2c3d.incomplete"
    partial.write_bytes(b"x")
    result = refused(cluster, repo="org/tuned")
    assert result["reason"] == "downloading"
    assert result["hosts"][1]["problem"] == "spark2: org/tuned is still being downloaded."
    assert result["hosts"][0]["problem"] is None


def test_a_local_model_goes_and_one_that_a_container_has_stays(cluster):
    local = cluster.root / "spark1/home/models"
    for name in ("tuned", "used"):
        (local / name).mkdir(parents=True)
        for file, content in WHOLE.items():
            (local / name / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    started = cluster.host(
        "spark1",
        "docker",
        "run",
        "-d",
        "--name",
        "user",
        "-v",
        f"{local / 'used'}:/model:ro",
        "vllm-node",
        "sleep",
        "99",
    )
    assert started.returncode == 0, started.stderr
    wish = {"local_model_dirs": [str(local)]}
    done = cluster.run("delete_weights", path=str(local / "tuned"), **wish)
    assert (done.code, done.result["outcome"]) == (0, "deleted"), done.output
    result = refused(cluster, path=str(local / "used"), **wish)
    assert "in use by the container user" in result["message"]
    assert sorted(os.listdir(local)) == ["used"]


def test_a_delete_that_was_cut_short_is_finished_by_the_next(cluster):
    model(home(cluster, "spark1"), "org/tuned", shared=True)
    hub = home(cluster, "spark1") / "hub"
    (hub / "models--org--tuned").rename(hub / ".spark-trash-models--org--tuned.0123abcd")
    done = cluster.run("delete_weights", repo="org/tuned")
    assert (done.code, done.result["outcome"]) == (0, "deleted"), done.output
    assert not list(hub.glob("*org--tuned*"))
    assert not [path for path in hub.glob("blobs/??/*") if not path.suffix]


def test_the_module_is_one_program_without_the_project(cluster, tmp_path):
    """What is copied to a Spark needs nothing but Python."""
    model(tmp_path, "org/a")
    command = [
        Path(sys.executable).parent / "ansible",
        "spark1",
        "-m",
        "spark.control.weights_scan",
        "-a",
        f"hf_home={tmp_path}",
    ]
    from tests.conftest import PROJECT

    done = subprocess.run(command, env=cluster.environment, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert '"state": "complete"' in done.stdout, done.stdout + done.stderr
