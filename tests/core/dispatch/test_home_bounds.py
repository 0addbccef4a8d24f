"""Bounds of scale in situations that chance seldom makes (tests/support/world.py)."""

from __future__ import annotations

from kserve_ext.core.dispatch.facts import Demand, Retake
from kserve_ext.core.facts import Scale
from kserve_ext.core.ids import FunctionID, NodeID
from tests.support.world import World
from tests.support.world_nodes import REVISION, revision

D0, D1 = FunctionID("dispatch-0"), FunctionID("dispatch-1")
N0, N1 = NodeID("node-0"), NodeID("node-1")


def up(world: World) -> None:
    """Everything that starts becomes ready."""
    world.flush()
    for run in world.all_running():
        if run.state == "starting":
            world.make_ready(run)
    world.flush()


def test_what_drains_counts_against_max_scale() -> None:
    scale = Scale(min=0, max=2, initial=0, window_s=6.0, grace_s=1.0)
    world = World(2, {N0: 4}, [revision(concurrency=10, scale=scale)])
    for _ in range(20):
        world.request(D0)
    up(world)
    keep = [next(iter(r.requests)) for r in world.all_running()]
    for request in world.requests:
        if request not in keep:
            world.finish(request)
    world.flush()
    for _ in range(60):  # scaled down to one; the other still has a request, is drained and told to stop
        world.pass_time(0.5)
        if any(r.state == "draining" for r in world.all_running()):
            break
    assert sorted(r.state for r in world.all_running()) == ["draining", "ready"]
    late = [world.request(D0) for _ in range(30)]
    world.flush()
    world.pass_time(1.0)
    world.check()
    assert len(world.all_running()) == 2
    world.settle(20.0)
    assert {r.state for r in [*keep, *late]} == {"ok"}


def test_a_start_whose_answer_was_lost_counts_until_its_node_has_spoken() -> None:
    scale = Scale(min=0, max=1, initial=0, window_s=6.0, grace_s=1.0)
    world = World(1, {N0: 5, N1: 4}, [revision(scale=scale)])
    world.flush()
    request = world.request(D0)
    while not world.all_running():
        world.deliver()
    world.nodes[N0].agent = False  # it hears nothing more for now
    while world.queue:
        world.lose(0)
    world.pass_time(5.0)
    assert [r.node for r in world.all_running()] == [N0], "the other node would have room"
    world.nodes[N0].agent = True
    world.pass_time(2.0)
    up(world)
    world.check()
    assert request.state == "sent"


def test_a_start_that_never_reached_anybody_does_not_count_for_ever() -> None:
    scale = Scale(min=0, max=1, initial=0, window_s=6.0, grace_s=1.0)
    world = World(1, {N0: 4}, [revision(scale=scale)])
    world.flush()
    request = world.request(D0)
    world.deliver()  # home hears of it, and calls a Schedule function: nobody hears that
    world.lose(len(world.queue) - 2)
    world.pass_time(3.0)
    up(world)
    assert request.state == "sent"
    assert [r.id for r in world.all_running()] == ["a-2"]


def test_a_restarted_home_starts_nothing_that_is_starting() -> None:
    world = World(2, {N0: 4}, [revision()])
    world.flush()
    home = world.home_of("ns/a")
    other = D1 if home == D0 else D0
    assert home is not None
    world.request(other)
    world.flush()
    assert len(world.all_running()) == 1
    world.kill(home)
    world.boot(home)
    world.publish()
    world.flush()
    world.pass_time(3.0)
    assert len(world.all_running()) == 1
    up(world)
    assert [r.state for r in world.requests] == ["sent"]


def test_slots_of_a_process_that_has_ended_are_free_at_once() -> None:
    """With no time passing, and though it was the home, too: nothing is told of its shard but that it has ended."""
    world = World(2, {N0: 4}, [revision(concurrency=2, scale=Scale(min=0, max=1, initial=0))])
    world.flush()
    home = world.home_of("ns/a")
    other = D1 if home == D0 else D0
    assert home is not None
    own = [world.request(home) for _ in range(2)]
    up(world)
    assert [r.state for r in own] == ["sent"] * 2
    waiting = [world.request(other) for _ in range(2)]
    world.flush()
    assert [r.state for r in waiting] == ["held"] * 2
    world.kill(home)
    world.flush()
    world.check()
    assert [r.state for r in waiting] == ["sent"] * 2


def test_a_home_that_missed_another_one_asks_everything_again() -> None:
    world = World(2, {N0: 4}, [revision()])
    world.flush()
    name = world.home_of("ns/a")
    assert name is not None
    proc = world.procs[name]
    home = proc.homes["ns/a"]
    demand = Demand(REVISION, 1, 1, 0, 1, 1, 0, 0.0, 0.0, incarnation=1, term=home.term + 4)
    grant, out = home.demand(D0, demand, world.now)
    assert (grant, out) == (None, [Retake(home.term + 4)])
    proc.carry("ns/a", home.retake(home.term + 4, world.now))
    assert not home.revisions[REVISION].open
    assert set(home.silent_shards) == {D0, D1}
    assert home.demand(D0, demand, world.now)[0] is None, "nothing is granted before the answers"
    proc.tick()
    world.flush()
    assert home.revisions[REVISION].open
    assert home.silent_shards == {}


def test_min_scale_is_kept_and_an_instance_that_died_is_replaced() -> None:
    scale = Scale(min=2, max=3, initial=1, window_s=6.0, grace_s=1.0)
    world = World(1, {N0: 4}, [revision(scale=scale)])
    world.flush()
    world.pass_time(0.5)
    up(world)
    assert len(world.all_running()) == 2
    world.pass_time(20.0)
    assert len(world.all_running()) == 2
    run = world.all_running()[0]
    world.nodes[run.node].end(run, "the process was killed by SIGKILL")
    world.pass_time(0.5)
    assert len(world.all_running()) == 2


def test_a_deleted_revision_drains_and_ends_though_its_home_has_moved() -> None:
    world = World(2, {N0: 4}, [revision()])
    requests = [world.request(D0) for _ in range(3)]  # before its shard has seen a view
    up(world)
    for proc in world.live():
        for request in proc.shard.forget(requests[0].key, world.now):
            request.to("refused")
        for home_key, home in proc.homes.items():
            proc.carry(home_key, home.delete(requests[0].key, world.now))
    world.pass_time(1.0)
    assert {r.state for r in requests} == {"sent"}, "what runs may end"
    world.finish_all()
    world.pass_time(2.0)
    assert not world.all_running()


def test_an_instance_that_nobody_reaches_is_replaced_though_its_node_keeps_silent() -> None:
    """Its process died while its node agent is paused: nobody says so."""
    world = World(2, {N0: 3, N1: 3}, [revision()])
    first = world.request(D0)
    up(world)
    world.finish(first)
    world.flush()
    (run,) = world.all_running()
    world.nodes[run.node].agent = False
    world.nodes[run.node].running.clear()
    late = world.request(D0)
    for _ in range(24):
        world.pass_time(0.25)
        up(world)
    assert late.state == "sent", world.log
    assert late.instance != run.id
    world.finish(late)
    world.nodes[run.node].agent = True
    world.settle(5.0)
    world.check()


def test_a_start_on_a_node_that_has_just_left_the_view_counts_until_it_is_back() -> None:
    """The home dies while its Place is under way, and the node that took it away before its successor can ask it."""
    world = World(3, {N0: 3, N1: 3}, [revision()])
    world.flush()
    world.request(D0)
    home = next(name for name, proc in world.procs.items() if proc.homes)
    world.deliver()  # the Demand; what follows is the Place
    world.kill(home)
    world.deliver()
    (run,) = world.all_running()
    asks = next(proc.id for proc in world.live())
    for _ in range(4):
        world.request(asks)
    node = world.nodes[run.node]
    node.agent = False
    world.away.add(node.id)
    world.publish()
    world.pass_time(0.5)
    node.agent = True
    world.away.discard(node.id)
    world.publish()
    world.check()
    world.settle(5.0)
