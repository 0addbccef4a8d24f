"""What a new home may give out before every shard has said what it uses: nothing that one of them may be using."""

from __future__ import annotations

from collections.abc import Iterable

from kserve_ext.core.dispatch.facts import GONE_S, LEASE_TTL_S, Demand
from kserve_ext.core.dispatch.home import Home
from kserve_ext.core.facts import Instance
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from tests.support.world_nodes import revision

ME, OTHER = FunctionID("dispatch-0"), FunctionID("dispatch-1")
NODE, ONE = NodeID("node-0"), InstanceID("one")
OF = revision(concurrency=1)


def taken_over() -> Home:
    """Where its only instance is known, and the other shard has yet to say whether it uses it."""
    home = Home(ME, 2, lambda key: ONE)
    home.view([NODE], {ME: 1, OTHER: 1}, (), 0.0)
    home.add(OF, False, (), 0.0)
    home.recalled(ME, [OF.key], (), 0.0)
    home.node_says(OF.key, NODE, (Instance(ONE, OF.key, NODE, "ready", "h:1"),), 0.0)
    return home


def leaves(home: Home, at: float, seen: Iterable[FunctionID]) -> None:
    home.view([NODE], {ME: 1}, [OTHER], at, seen=seen)


def gives(home: Home, seq: int, at: float) -> bool:
    """Whether a request that waits at the home's own shard gets the slot."""
    home.tick(at)
    grant, _ = home.demand(ME, Demand(OF.key, seq, 1, 0, 1, 0, 0, 0.0, 0.5, incarnation=1, term=2), at)
    assert grant is not None
    return any(n for _, _, n in grant.slots)


def test_a_shard_that_leaves_without_an_answer_may_only_be_paused() -> None:
    home = taken_over()
    assert not gives(home, 1, 0.5)
    leaves(home, 1.0, seen=[OTHER])
    assert not gives(home, 2, 1.1)
    assert not gives(home, 3, 2 * GONE_S)
    home.ended(OTHER, 2 * GONE_S)
    assert gives(home, 4, 2 * GONE_S)


def test_the_lease_of_one_whose_end_nobody_sees_is_over_by_time() -> None:
    home = taken_over()
    leaves(home, 1.0, seen=())
    assert not gives(home, 1, LEASE_TTL_S - 0.1)
    assert gives(home, 2, GONE_S + 0.1)


def test_one_that_is_back_is_asked() -> None:
    home = taken_over()
    leaves(home, 1.0, seen=[OTHER])
    home.view([NODE], {ME: 1, OTHER: 1}, (), 2.0)
    assert home.silent_shards == {OTHER: [OF.key]}
    home.recalled(OTHER, [OF.key], (), 2.1)
    assert gives(home, 1, 2.1)


def test_one_that_does_not_answer_leaves_the_view_before_anything_of_it_is_free() -> None:
    """It is taken for dead after as long as its lease lasts, and the home hears of that a little later."""
    home = taken_over()
    assert not gives(home, 1, LEASE_TTL_S + 0.5)
    leaves(home, LEASE_TTL_S + 0.5, seen=[OTHER])
    assert not gives(home, 2, LEASE_TTL_S + 2.0)
