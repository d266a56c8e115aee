"""What Ansible builds of the modules is kept for the next run, and only for one that would build the same."""

from __future__ import annotations

import base64
import io
import os
import pickle
import zipfile

import pytest


@pytest.fixture
def run(cluster, tmp_path, monkeypatch):
    """run() gives and takes back a reservation with a home folder of one's own; it returns the packs that are kept."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    packs = tmp_path / "home/.cache/spark-control/modules"

    def once() -> dict:
        done = cluster.run("gpu_lease", holder="ComfyUI", seconds=600)
        assert done.code == 0, done.output
        return {path: path.stat().st_mtime_ns for path in packs.glob("*/*")}

    return once


def test_a_pack_is_kept_with_its_code_and_used_again(run):
    first = run()
    (pack,) = first
    assert pack.name.startswith("ansible_collections.spark.control.plugins.modules.gpu_lease")
    names = zipfile.ZipFile(io.BytesIO(base64.b64decode(pickle.loads(pack.read_bytes()).zip_data))).namelist()
    assert {name for name in names if name.endswith(".pyc")} == {f"{name}c" for name in names if name.endswith(".py")}
    assert run() == first


def test_a_pack_that_is_broken_or_somebody_elses_stops_nothing(run, tmp_path):
    (pack,) = run()
    pack.parent.chmod(0o777)  # anybody could have put it there
    pack.write_bytes(b"no pickle")
    run()
    pack.parent.chmod(0o700)
    for left in (b"", b"\0" * 4096, b"no pickle"):
        pack.write_bytes(left)
        run()
    packs = tmp_path / "home/.cache/spark-control/modules"
    for path in packs.glob("*/*"):
        path.unlink()
    os.rename(packs, packs.with_name("gone"))
    packs.write_text("no folder")
    run()
