"""repartition: what joins is known to all and has its nodes in a time that is told, with few nodes moved."""

from __future__ import annotations

from kserve_ext.sim.fleet import World
from kserve_ext.sim.repartition import BALANCE, MOVED, joining

SMALL = World(nodes=24)


def test_functions_that_join_have_their_nodes_and_the_same_seed_says_the_same() -> None:
    for added in (1, 2):
        joined = joining(SMALL, 0, instances=10, added=added, functions=6)
        assert 0.0 < joined.consistent_s < 1.0
        assert 0.0 < joined.handed_s < 1.0
        assert 0.0 < joined.moved <= MOVED * added / (6 - added)
        assert joined.balance <= BALANCE
        assert joined == joining(SMALL, 0, instances=10, added=added, functions=6)
