"""Rounds of chaos on the simulated Sparks: ten in `make test`, any by `make chaos ROUNDS= FIRST=`."""

from __future__ import annotations

import os

import pytest

from tests.chaos.chaos import Chaos

FIRST, ROUNDS = (int(os.environ.get(f"CHAOS_{name}") or default) for name, default in (("FIRST", 0), ("ROUNDS", 10)))


@pytest.mark.parametrize("number", range(FIRST, FIRST + ROUNDS))
def test_a_round_of_chaos(simulation, tmp_path, number):
    with simulation.lent(tmp_path, serving=True) as cluster:
        chaos = Chaos(cluster, number)
        try:
            chaos.play()
        finally:
            chaos.close()
