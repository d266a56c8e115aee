"""The lab itself: the same again, and a run that was killed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.conftest import PROJECT
from tests.lab.conftest import patiently
from tests.lab.engine import words
from tests.lab.lab import LABEL, Lab

# Each file is a group of its own: whichever worker is free takes it, with a lab of its own.
pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("lab")]

KILLED = "from pathlib import Path; from tests.lab.lab import Lab; Lab('cut', 1, '172.31.80', Path({!r})).up()"


def test_up_again_leaves_what_is_well_alone_and_mends_the_rest(lab):
    mine = ("ps", "--all", "--quiet", "--filter", f"label={LABEL}={lab.name}")
    before = set(words(*mine))
    lab.up()
    assert set(words(*mine)) == before
    assert lab.status() == [
        {"host": host, "address": address, "container": True, "ssh": True, "docker": True}
        for host, address in lab.hosts.items()
    ]
    images = {lab.root(host, "docker", "image", "inspect", "--format", "{{.Id}}", "vllm-node") for host in lab.hosts}
    assert len(images) == 1
    assert "sudo" not in lab.root("spark1", "groups", "spark")


def test_a_run_that_was_killed_does_not_break_the_next_and_down_leaves_nothing(lab, tmp_path):
    cut = Lab("cut", 1, "172.31.80", tmp_path / "cut")
    found = ("--quiet", "--filter", f"label={LABEL}=cut")
    killed = subprocess.Popen([sys.executable, "-c", KILLED.format(str(cut.state))], cwd=PROJECT)
    patiently(lambda: words("ps", "--all", *found), "the first container")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    cut.up()
    assert [row["docker"] for row in cut.status()] == [True]
    assert cut.user("spark1", "docker image ls -q vllm-node")
    cut.down()
    left = [words(*what, *found) for what in (("ps", "--all"), ("volume", "ls"), ("network", "ls"))]
    assert left == [[], [], []]
    assert not cut.state.exists()
    cut.down()
    assert all(row["docker"] for row in lab.status())
