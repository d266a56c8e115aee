"""What every test may use: the project's folder, and its plugins' Python as Ansible sees it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

PROJECT = Path(__file__).resolve().parent.parent
# Ansible finds the collection beside the playbooks by itself; Python has to be told where it is.
sys.path.insert(0, str(PROJECT / "playbooks/collections"))

# Properties: the same few examples each time in `make test`, new ones without end in `make fuzz`.
settings.register_profile("test", max_examples=30, deadline=None, derandomize=True, database=None)
settings.register_profile("fuzz", max_examples=1000, deadline=None)
settings.load_profile("test")


@pytest.fixture(scope="session")
def project() -> Path:
    """The repository."""
    return PROJECT


@pytest.fixture(scope="session")
def simulation(tmp_path_factory):
    """The simulated Sparks of this worker, laid by the demo's playbook when the first test wants them."""
    from tests.simulation import Simulation

    # Loopback has 16 million addresses: a network for each process keeps the ports of runs beside each other apart.
    number = os.getpid()
    made = Simulation(tmp_path_factory.mktemp("sparks"), f"127.{64 + number // 250 % 128}.{number % 250}")
    yield made
    made.remove()
