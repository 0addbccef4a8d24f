"""What a new home may give out before every shard has said what it uses: nothing that one of them may be using.

Nor what one may be using that left before the new home's process began.
"""

from __future__ import annotations

from collections.abc import Iterable

from kserve_ext.core.dispatch.facts import GONE_S, LEASE_TTL_S, SEEN_TTL_S, Demand, Place
from kserve_ext.core.dispatch.fleet import ANY_NODE, NODE_GRACE_S
from kserve_ext.core.dispatch.ghosts import Ghosts
from kserve_ext.core.dispatch.home import Home
from kserve_ext.core.dispatch.take_over import Copy, Leavers
from kserve_ext.core.facts import Instance, Member, View
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.core.membership import GATHER_S, SILENT_S, MembershipMachine
from tests.support.world_nodes import revision

ME, OTHER = FunctionID("dispatch-0"), FunctionID("dispatch-1")
NODE, ONE, LAST = NodeID("node-0"), InstanceID("one"), InstanceID("last")
OF = revision(concurrency=1)


def taken_over(seen: Iterable[FunctionID] = ()) -> Home:
    """Where its only instance is known, and the other shard has yet to say whether it uses it."""
    home = Home(ME, 2, lambda key: ONE)
    home.view([NODE], {ME: 1, OTHER: 1}, (), 0.0, seen=seen)
    home.add(OF, False, (), 0.0)
    home.recalled(ME, [OF.key], (), 0.0)
    home.node_says(OF.key, NODE, (Instance(ONE, OF.key, NODE, "ready", "h:1"),), 0.0, 0.0)
    return home


def leaves(home: Home, at: float, seen: Iterable[FunctionID]) -> None:
    home.view([NODE], {ME: 1}, [OTHER], at, seen=seen)


def gives(home: Home, seq: int, at: float) -> bool:
    """Whether a request that waits at the home's own shard gets the slot."""
    home.tick(at)
    home.demand(ME, Demand(OF.key, seq, 1, 0, 1, 0, 0, 0.0, 0.5, incarnation=1, term=2), at)
    return bool(home.revisions[OF.key].leases.accounts[ME].intended)


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


def test_one_that_does_not_answer_and_does_not_leave_either_may_be_paused_while_there_is_no_controller() -> (
    None
):
    home = taken_over(seen=[ME, OTHER])
    assert not gives(home, 1, 2 * GONE_S)
    home.recalled(OTHER, [OF.key], (), 2 * GONE_S)
    assert gives(home, 2, 2 * GONE_S)


# --- a home whose process wasn't there when a shard left


def joined(controller: MembershipMachine, name: FunctionID, incarnation: int, at: float) -> View:
    """Of this machine."""
    member = Member(name, "dispatch", f"here:{name[-1]}", incarnation)
    controller.join(member, 0, incarnation, at)
    return controller.view


def both_then_paused() -> MembershipMachine:
    """The other shard has left the view for its silence."""
    controller = MembershipMachine(View(), 0.0)
    joined(controller, OTHER, 1, 0.0)
    view = joined(controller, ME, 1, 0.0)
    for k in range(1, round(SILENT_S * 10) + 2):
        controller.report(ME, 1, view.epoch, 1, k / 10)
        controller.tick(k / 10)
    assert [m.id for m in controller.view.members] == [ME]
    return controller


def home_of(view: View, at: float) -> tuple[Home, Ghosts]:
    """Of a process that begins with this view, and its only instance runs."""
    ghosts = Ghosts("here:0")
    ghosts.view(view.members, view.left, at)
    home = Home(ME, view.epoch, lambda key: ONE)
    home.view([NODE], {ME: 2}, ghosts.left, at, seen=ghosts.seen)
    home.add(OF, False, (), at)
    home.recalled(ME, [OF.key], (), at)
    home.node_says(OF.key, NODE, (Instance(ONE, OF.key, NODE, "ready", "h:1"),), at, at)
    return home, ghosts


def grants(home: Home, seq: int, at: float) -> bool:
    home.tick(at)
    demand = Demand(OF.key, seq, 1, 0, 1, 0, 0, 0.0, 0.5, incarnation=2, term=home.term)
    home.demand(ME, demand, at)
    return bool(home.revisions[OF.key].leases.accounts[ME].intended)


def test_a_home_that_begins_anew_is_told_who_left_before() -> None:
    home, ghosts = home_of(joined(both_then_paused(), ME, 2, 4.0), 4.0)
    assert not grants(home, 1, 4.0)
    assert not grants(home, 2, 4.0 + 2 * GONE_S)
    ((other, ghost),) = ghosts.asked
    assert other == OTHER
    assert ghosts.ended(OTHER, ghost)
    home.ended(OTHER, 15.0)
    assert grants(home, 3, 15.0)


def test_so_does_a_controller_that_begins_anew_know_it() -> None:
    controller = MembershipMachine(both_then_paused().view, 4.0)
    home, _ = home_of(joined(controller, ME, 2, 4.5), 4.5)
    assert not grants(home, 1, 5.0 + GONE_S)


def test_where_nobody_knows_who_left_as_long_as_one_may_live_has_to_pass() -> None:
    """The controller has lost what it stored, and hears that there were views."""
    controller = MembershipMachine(View(), 4.0)
    member = Member(ME, "dispatch", "here:0", 2)
    controller.join(member, 7, 1, 4.0)
    controller.tick(4.0 + GATHER_S)
    home, ghosts = home_of(controller.view, 6.0)
    assert not grants(home, 1, 6.0 + GONE_S)
    assert ghosts.asked == []
    for gone in ghosts.tick(6.1 + SEEN_TTL_S):
        home.ended(gone, 6.1 + SEEN_TTL_S)
    assert grants(home, 2, 6.1 + SEEN_TTL_S)


def test_what_was_being_placed_may_be_on_a_node_that_left_before_and_counts_until_it_would_be_back() -> None:
    controller = MembershipMachine(View(), 0.0)
    controller.join(Member(FunctionID(NODE), "node", "here:9", 1), 0, 1, 0.0)
    controller.leave(FunctionID(NODE), 1, "silent", 1.0)
    at = 4.0
    view = joined(MembershipMachine(controller.view, at), ME, 2, at)
    leavers = Leavers()
    leavers.view((), view.left, at)
    home = Home(ME, view.epoch, lambda key: ONE)
    home.view((), {ME: 2}, (), at, away=leavers.away(at))
    home.add(OF._replace(scale=OF.scale._replace(max=1)), False, (Copy(LAST, ANY_NODE, ""),), at)
    home.recalled(ME, [OF.key], (), at)
    demand = Demand(OF.key, 1, 1, 0, 1, 0, 0, 0.0, 0.5, incarnation=2, term=home.term)
    _, out = home.demand(ME, demand, at)
    assert not any(isinstance(i, Place) for i in out), "there may be one already, which is the most"
    after = at + NODE_GRACE_S + 1.0
    out = [*home.tick(at + 0.1), *home.tick(after)]
    assert any(isinstance(i, Place) for i in out)
    assert leavers.away(after) == set()


def test_a_cluster_that_begins_waits_for_nobody() -> None:
    controller = MembershipMachine(View(), 0.0)
    home, _ = home_of(joined(controller, ME, 2, 0.0), 0.0)
    assert grants(home, 1, 0.0)
