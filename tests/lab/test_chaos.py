"""Rounds of chaos (tests/chaos) on hosts with a real sshd: there a connection can be cut too."""

from __future__ import annotations

import pytest

from tests.chaos.chaos import VICTIMS, Chaos
from tests.lab.conftest import LabCluster

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("chaos")]


class LabChaos(Chaos):
    """A round in the lab."""

    victims = ("connections", "connections of the workers", *VICTIMS)
    cluster: LabCluster

    def connections(self) -> None:
        """End every ssh session on every host, as a switch does that is switched off and on."""
        self.cluster.log_out()

    def connections_of_the_workers(self) -> None:
        self.cluster.lab.root("spark2", "pkill", "-KILL", "-f", "sshd: spark", check=False)

    def kill_there(self, pid: int) -> None:
        self.cluster.lab.root("spark1", "kill", "-KILL", str(pid), check=False)


@pytest.mark.parametrize("number", range(8))
def test_a_round_of_chaos_in_the_lab(cluster, number):
    assert cluster.swap("demo-small").code == 0
    chaos = LabChaos(cluster, number)
    try:
        chaos.play()
    finally:
        chaos.close()
