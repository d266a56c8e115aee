"""Each test gets two simulated Sparks of its own."""

from __future__ import annotations

import itertools
import os

import pytest

from tests.support import Cluster

_clusters = itertools.count(1)


@pytest.fixture
def cluster(tmp_path):
    """Two fresh simulated Sparks with models that load in half a second; everything is taken down afterwards."""
    # Loopback has 16 million addresses: a network for each process and test keeps their ports apart.
    made = Cluster(tmp_path / "demo", f"127.{64 + os.getpid() % 128}.{next(_clusters) % 250}")
    laid = made.run("demo", demo_spark_load_seconds=0.5)
    assert laid.code == 0, laid.output
    yield made
    gone = made.run("demo", demo_spark_state="absent")
    assert gone.code == 0, gone.output
