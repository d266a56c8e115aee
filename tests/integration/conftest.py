"""Each test gets the worker's two simulated Sparks as they were laid, or shares them with its file."""

from __future__ import annotations

import pytest

from tests.installed import Installed
from tests.support import Server


@pytest.fixture
def cluster(request, simulation, tmp_path):
    """Two simulated Sparks and models that load in half a second; nothing runs, or demo-small (mark: serving)."""
    with simulation.lent(tmp_path, serving=serving(request)) as lent:
        yield lent


@pytest.fixture(scope="module")
def shared_cluster(request, simulation, tmp_path_factory):
    """The same for a whole file, whose tests put back what they change. The file is one xdist_group."""
    with simulation.lent(tmp_path_factory.mktemp("shared"), serving=serving(request)) as lent:
        yield lent


@pytest.fixture(scope="module")
def shared_server(shared_cluster):
    """`spark-control serve` in front of them for a whole file."""
    made = Server(shared_cluster)
    yield made
    made.stop()


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A venv with ansible-core alone, and the collection as it is built and installed."""
    made = Installed(tmp_path_factory.mktemp("installed"))
    made.install(made.build())
    return made


def serving(request) -> bool:
    """Whether the test or the file wants demo-small to serve."""
    return request.node.get_closest_marker("serving") is not None
