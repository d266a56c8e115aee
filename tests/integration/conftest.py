"""Each test gets the worker's two simulated Sparks as they were laid, or shares them with its file."""

from __future__ import annotations

import pytest

from tests.support import Server


@pytest.fixture
def cluster(simulation, tmp_path):
    """Two simulated Sparks with nothing running on them and models that load in half a second."""
    with simulation.lent(tmp_path) as lent:
        yield lent


@pytest.fixture(scope="module")
def shared_cluster(simulation, tmp_path_factory):
    """The same for a whole file, whose tests put back what they change. The file is one xdist_group."""
    with simulation.lent(tmp_path_factory.mktemp("shared")) as lent:
        yield lent


@pytest.fixture(scope="module")
def shared_server(shared_cluster):
    """`spark-control serve` in front of them for a whole file."""
    made = Server(shared_cluster)
    yield made
    made.stop()
