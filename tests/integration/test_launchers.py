"""The swap by the real playbook over each shape of launch-cluster.sh that Sparks have, beside September's."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.conftest import PROJECT

SHAPES = ("january", "october")


@pytest.fixture
def lay(cluster):
    """lay(shape) gives both Sparks that launcher. It, its settings and mods and the images are put back afterwards."""
    folders = [cluster.root / host / "home/spark-vllm-docker" for host in ("spark1", "spark2")]
    kept = [folder / "launch-cluster.sh" for folder in folders]
    kept += [cluster.root / host / "docker/images.json" for host in ("spark1", "spark2")]
    kept = {path: path.read_bytes() for path in kept}

    def do(shape: str) -> None:
        for folder in folders:
            source = PROJECT / f"roles/demo_spark/files/launch-cluster-{shape}.sh"
            put(folder / "launch-cluster.sh", source.read_bytes())

    yield do
    for path, content in kept.items():
        put(path, content)
    for folder in folders:
        (folder / ".env").unlink(missing_ok=True)
        shutil.rmtree(folder / "mods/broken", ignore_errors=True)


def put(path, content: bytes) -> None:
    """Another file in its place: a bash that still runs the old one goes on reading that."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.chmod(path.stat().st_mode)
    fresh.replace(path)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_launcher_is_driven_rightly(cluster, lay, shape):
    """January's stays in the foreground, knows no --solo and reads its command again with a shell."""
    lay(shape)
    first = cluster.swap("demo-small")
    assert (first.code, first.result["outcome"]) == (0, "serving"), first.output
    again = cluster.swap("demo-small")
    assert (again.result["outcome"], again.result["changed"]) == ("unchanged", False), again.output
    assert {row["changed"] for row in again.recap.values()} == {0}
    pair = cluster.swap("demo-pair")
    assert (pair.code, pair.result["serving"]["nodes"]) == (0, ["spark1", "spark2"]), pair.output
    assert cluster.chat("demo-pair")
    failed = cluster.swap("demo-crash")
    assert (failed.result["outcome"], failed.result["reason"]) == ("rolled back", "crashed"), failed.output
    assert cluster.chat("demo-pair")
    stopped = cluster.run("stop_model")
    assert stopped.code == 0, stopped.output
    assert cluster.containers("spark1") == cluster.containers("spark2") == []


BROKEN_MOD = """
recipe_version: "1"
name: "Demo: a mod that fails"
model: demo/second
container: vllm-node
solo_only: true
mods: [mods/broken]
defaults: {port: 8888, host: 0.0.0.0}
command: vllm serve demo/second --host {host} --port {port} --gpu-memory-utilization 0.5
"""


def test_a_launch_that_octobers_launcher_gives_up_is_told_and_the_old_model_is_back(cluster, lay):
    lay("october")
    assert cluster.swap("demo-small").code == 0
    mod = cluster.root / "spark1/home/spark-vllm-docker/mods/broken/run.sh"
    mod.parent.mkdir()
    mod.write_text("#!/bin/bash\necho 'the patch does not apply'\nexit 1\n")
    cluster.recipe("demo-mod", BROKEN_MOD)
    failed = cluster.swap("demo-mod")
    assert (failed.result["outcome"], failed.result["reason"]) == ("rolled back", "launch_failed"), failed.output
    assert any("the patch does not apply" in line for line in failed.result["log_tail"]), failed.result
    assert cluster.models() == ["demo-small"]


def test_images_that_differ_in_their_id_only_are_the_same_to_octobers_launcher_and_to_us(cluster, lay):
    path = cluster.root / "spark2/docker/images.json"
    first, *rest = json.loads(path.read_text())
    path.write_text(json.dumps([first | {"id": "sha256:" + "5" * 64, "layers": [first["id"]]}, *rest]))
    refused = cluster.swap("demo-pair")
    assert refused.result["reason"] == "image_missing", refused.output
    lay("october")
    pair = cluster.swap("demo-pair")
    assert (pair.code, pair.result["outcome"]) == (0, "serving"), pair.output
    assert cluster.swap("demo-pair").result["outcome"] == "unchanged"


@pytest.mark.parametrize("shape", ["september", "october"])
def test_settings_beside_the_launcher_that_would_spoil_a_launch_are_told_before_anything_stops(cluster, lay, shape):
    lay(shape)
    assert cluster.swap("demo-small").code == 0
    settings = cluster.root / "spark1/home/spark-vllm-docker/.env"
    for text, said in (
        ("CONTAINER_NAME=mine\n", "CONTAINER_NAME=mine in"),
        ("CONTAINER_NOTE=two words\n", "CONTAINER_NOTE in"),
    ):
        settings.write_text(text)
        refused = cluster.swap("demo-pair")
        assert (refused.result["outcome"], refused.result["reason"]) == ("refused", "launcher_settings"), refused.output
        assert said in refused.result["message"]
    assert cluster.models() == ["demo-small"]
    settings.write_text(f"CONTAINER_NAME=vllm_node\nLOCAL_IP={cluster.network}.11\n")
    assert cluster.swap("demo-pair").code == 0
