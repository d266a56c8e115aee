"""The tree keeps its own rules: ruff, ansible-lint at profile production, playbooks that parse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

BIN = Path(sys.executable).parent


def run(*command: str) -> None:
    """Run a checker in the project; fail with what it says."""
    environment = {"PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "NO_COLOR": "1"}
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff():
    run("ruff", "check", ".")
    run("ruff", "format", "--check", ".")


def test_ansible_lint_production():
    run("ansible-lint", "--offline", "-q")


@pytest.mark.parametrize("playbook", sorted(PROJECT.glob("playbooks/*.yml")), ids=lambda path: path.stem)
def test_a_playbook_parses(playbook):
    run("ansible-playbook", "--syntax-check", "-i", "inventory/demo", str(playbook))
