"""What every test may use: the project's folder, and its plugins' Python as Ansible sees it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
# Ansible finds the collection beside the playbooks by itself; Python has to be told where it is.
sys.path.insert(0, str(PROJECT / "playbooks/collections"))


@pytest.fixture(scope="session")
def project() -> Path:
    """The repository."""
    return PROJECT
