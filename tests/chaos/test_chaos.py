"""Rounds of chaos on the simulated Sparks: ten in `make test`, any number by `make chaos ROUNDS=`."""

from __future__ import annotations

import os

import pytest

from tests.chaos.chaos import Chaos

ROUNDS = int(os.environ.get("CHAOS_ROUNDS") or 10)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_round_of_chaos(simulation, tmp_path, number):
    with simulation.lent(tmp_path, serving=True) as cluster:
        chaos = Chaos(cluster, number)
        try:
            chaos.play()
        finally:
            chaos.close()
