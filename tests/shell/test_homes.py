"""Homes without processes: what is asked of whom, which answers are taken, who is ticked, what the store is told."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from activator_replacement import homes as shell
from activator_replacement.copies import status_of
from activator_replacement.dispatch import Dispatcher
from activator_replacement.homes import Homes
from activator_replacement.routes import Routes
from kserve_ext.core import rendezvous
from kserve_ext.core.dispatch.home import Home
from kserve_ext.core.facts import Command, Instance, Kind, Member, Model, Resources, Revision, Scale, View
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.rpc import Caller, RpcError
from kserve_ext.rpc.history import History
from kserve_ext.rpc.membership import Membership
from kserve_ext.wire import messages as m

ME, OTHER = FunctionID("dispatch-0"), FunctionID("dispatch-1")
SOMEBODY = Caller("node-0", 0, b"", b"", 0.0)
Done = Callable[[m.Message | RpcError], None]


def mine(count: int) -> list[Revision]:
    """Revisions whose home is ME, also when OTHER is there."""
    found: list[Revision] = []
    k = 0
    while len(found) < count:
        k += 1
        key = RevisionKey(f"ns/r{k}-00001")
        if rendezvous.owner(key, [ME, OTHER]) == ME:
            scale = Scale(min=0, initial=0)
            found.append(
                Revision(key, f"ns/r{k}", 1, Command(("serve",)), Model(), Resources(), scale, concurrency=2)
            )
    return found


def successor(revision: Revision) -> FunctionID:
    """One that takes this revision from ME."""
    names = [FunctionID(f"d{k}") for k in range(99)]
    return next(n for n in names if rendezvous.owner(revision.key, [ME, OTHER, n]) == n)


class Fakes:
    """Loop, rpc and store of one Dispatch function: time stands still, calls wait for their answers."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.soon: list[Callable[[], None]] = []
        self.calls: list[tuple[str, m.Message, Done]] = []
        self.written: dict[str, bytes | None] = {}
        self.name = ME
        self.member = Member(ME, "dispatch", "me:1", 1)
        self.epoch: Callable[[], int] = lambda: 0
        self.history = History(ME, "")

    # the loop
    def time(self) -> float:
        return self.now

    def call_soon(self, *args: Any) -> object:
        """Also rpc's: (addr, message, done, timeout)."""
        if callable(args[0]):
            self.soon.append(lambda: args[0](*args[1:]))
        else:
            self.calls.append((args[0], args[1], args[2]))
        return object()

    # rpc
    def handle(self, *ignored: object) -> None: ...

    on_peer_lost = handle
    watch = handle
    restate = handle

    # the store
    def put(self, items: list[tuple[str, bytes | None]]) -> None:
        self.written.update(items)


class World:
    def __init__(self) -> None:
        self.fakes = fakes = Fakes()
        self.routes = Routes(self._heard)
        self.membership = Membership(fakes, fakes.member, "controller:1")  # type: ignore[arg-type]
        self.dispatcher = Dispatcher(ME, 1, fakes, self.routes)  # type: ignore[arg-type]
        self.homes = Homes(fakes, self.membership, fakes, self.routes, self.dispatcher)  # type: ignore[arg-type]
        for part in (self.homes, self.homes._questions, self.homes._granting, self.homes._placing):
            part.loop = fakes  # type: ignore[assignment]
        self.homes.copies.loop = self.dispatcher.loop = fakes  # type: ignore[assignment]
        self.membership.on_view(self.homes.view)
        self.membership.on_view(lambda view: self.dispatcher.view(view, self.homes.home_of))
        self.routes._all_routes({})

    def _heard(self, key: RevisionKey, revision: Revision | None, created: bool) -> None:
        self.dispatcher.revision(key, revision)
        self.homes.revision(key, revision, created=created)

    def view(self, epoch: int, *members: str) -> None:
        kinds: dict[str, Kind] = {"d": "dispatch", "n": "node"}
        named = sorted({ME, *members})
        self.membership._take(
            View(epoch, tuple(Member(FunctionID(n), kinds[n[0]], f"{n}:1", 1) for n in named))
        )

    def scan(self, revisions: list[Revision]) -> None:
        self.routes._all_revisions({f"revisions/{r.key}": msgspec.msgpack.encode(r) for r in revisions})

    def passes(self, seconds: float) -> None:
        until = self.fakes.now + seconds
        while self.fakes.now < until:
            self.fakes.now = min(until, self.fakes.now + 0.5)
            self.homes.tick()

    def run_soon(self) -> None:
        while self.fakes.soon:
            self.fakes.soon.pop(0)()

    def recalls(self) -> list[tuple[str, m.Recall, Done]]:
        """Those not yet answered, taken out."""
        self.run_soon()
        found = [(a, x, d) for a, x, d in self.fakes.calls if isinstance(x, m.Recall)]
        self.fakes.calls = [c for c in self.fakes.calls if not isinstance(c[1], m.Recall)]
        return found

    def settle(self) -> None:
        """Nodes and shards answer that they have nothing, until nobody asks any more."""
        while found := self.recalls():
            for _, message, done in found:
                done(m.RecallReply((), message.epoch))


def run(test: Callable[[World], None]) -> None:
    async def main() -> None:
        test(World())

    work: Coroutine[Any, Any, None] = main()
    asyncio.run(work)


def test_a_take_over_of_many_asks_each_node_and_shard_once() -> None:
    def test(world: World) -> None:
        revisions = mine(50)
        world.scan(revisions)
        world.view(1, OTHER, "node-0", "node-1")
        asked = world.recalls()
        assert sorted(addr for addr, _, _ in asked) == [f"{n}:1" for n in (ME, OTHER, "node-0", "node-1")]
        for _, message, done in asked:
            assert sorted(message.revisions) == sorted(r.key for r in revisions)
            done(m.RecallReply((), 1))
        assert all(h.revisions[k].open for h in world.homes.homes.values() for k in h.revisions)
        assert all(not h.silent_shards for h in world.homes.homes.values())

    run(test)


def test_a_node_answers_for_each_of_the_revisions_it_was_asked_for() -> None:
    def test(world: World) -> None:
        first, second = mine(2)
        world.scan([first, second])
        world.view(1, "node-0")
        (done,) = (done for addr, _, done in world.recalls() if addr == "node-0:1")
        fact = Instance(InstanceID("i"), second.key, NodeID("node-0"), "ready", "host:1")
        done(m.RecallReply((fact,), 1))
        assert world.homes.peers_of(first.key) == ()
        assert world.homes.peers_of(second.key) == (m.PrefillPeer(InstanceID("i"), "host:1", 0),)

    run(test)


def test_an_answer_to_an_older_term_is_not_taken_for_one_to_the_newer() -> None:
    """Away and back: what was answered before the other home was there says nothing about what that one did."""

    def test(world: World) -> None:
        (revision,) = mine(1)
        world.scan([revision])
        world.view(1, OTHER, "node-0")
        early = world.recalls()
        world.view(2, OTHER, successor(revision), "node-0")
        assert revision.key not in world.homes.homes
        world.view(3, OTHER, "node-0")
        (home,) = world.homes.homes.values()
        assert home.term == 3
        for _, message, done in early:
            done(m.RecallReply((), message.epoch))
        take = home.revisions[revision.key].take
        assert not take.open
        assert take.silent_nodes == {"node-0"}
        assert OTHER in take.silent_shards
        world.settle()
        world.homes.tick()
        world.settle()
        take = home.revisions[revision.key].take
        assert take.open
        assert not take.silent_shards

    run(test)


def test_idle_homes_take_turns_and_an_event_wakes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def test(world: World) -> None:
        revisions = mine(40)
        world.scan(revisions)
        world.view(1)
        world.settle()
        ticked: list[int] = []
        real = Home.tick

        def tick(home: Home, now: float) -> list[Any]:
            ticked.append(id(home))
            return real(home, now)

        monkeypatch.setattr(Home, "tick", tick)
        world.homes.tick()
        ticked.clear()
        for _ in range(shell.IDLE_TICKS):
            before = len(ticked)
            world.homes.tick()
            assert len(ticked) - before <= 40 / shell.IDLE_TICKS
        assert Counter(ticked) == {id(h): 1 for h in world.homes.homes.values()}
        ticked.clear()
        key = revisions[0].key
        demand = m.Demand(key, 1, 1, 0, 1, 1, 0, 0.0, 0.1, incarnation=1, term=1)
        world.homes.coordinate(m.Coordinate(OTHER, "", 1, (demand,)), SOMEBODY)
        for _ in range(shell.IDLE_TICKS):
            world.homes.tick()
        assert ticked.count(id(world.homes.homes[key])) == shell.IDLE_TICKS

    run(test)


def test_instances_of_a_revision_that_is_only_new_here_are_not_unwanted() -> None:
    def test(world: World) -> None:
        world.scan([])
        world.view(1, "node-0")
        (revision,) = mine(1)
        fact = Instance(InstanceID("i"), revision.key, NodeID("node-0"), "ready", "host:1")
        told = m.ModInstance(revision.key, NodeID("node-0"), 1, (fact,), 1, full=True)
        reply = world.homes.mod_instance(told, SOMEBODY)
        assert (reply.home, reply.unwanted) == (False, ())
        world.passes(shell.STRANGER_S)
        assert world.homes.mod_instance(told, SOMEBODY).unwanted == ("i",), "it was deleted, after all"
        world.scan([revision])
        assert world.homes.mod_instance(told, SOMEBODY).home
        world.scan([])
        assert "i" not in world.homes.mod_instance(told, SOMEBODY).unwanted, "its home stops it, with drain"

    run(test)


def test_status_is_written_again_when_another_home_was_in_between() -> None:
    def test(world: World) -> None:
        (revision,) = mine(1)
        world.scan([revision])
        world.view(1)
        world.settle()
        world.homes.tick()
        key = f"status/{revision.key}"
        first = world.fakes.written.pop(key)
        assert first is not None
        assert json.loads(first)["phase"] == "inactive"
        world.fakes.now += 1.0
        world.homes.tick()
        assert key not in world.fakes.written, "nothing has changed"
        world.view(2, successor(revision))
        world.view(3)
        world.settle()
        world.homes.tick()
        assert key in world.fakes.written

    run(test)


def test_the_copy_of_what_is_no_more_takes_no_room() -> None:
    def test(world: World) -> None:
        value = msgspec.msgpack.encode(("node-0", "host:1"))
        world.homes.copies._change("instances/ns/r-1/i", value)
        assert world.homes.copies.of(RevisionKey("ns/r-1")) == (("i", "node-0", "host:1"),)
        world.homes.copies._change("instances/ns/r-1/i", None)
        world.homes.copies._change("instances/ns/r-1/never", None)
        assert world.homes.copies._known == {}

    run(test)


def test_a_process_that_stood_still_answers_as_if_it_were_no_home_until_the_controller_knows_it() -> None:
    def test(world: World) -> None:
        (revision,) = mine(1)
        world.scan([revision])
        world.view(1, OTHER, "node-0")
        world.settle()
        (home,) = world.homes.homes.values()
        ask = m.Coordinate(OTHER, "", 1, (m.Demand(revision.key, 1, 1, 0, 1, 1, 0, 0.0, 0.5),))
        assert world.homes.coordinate(ask, SOMEBODY).elsewhere == ()
        world.fakes.now += 5.0
        late = m.Coordinate(OTHER, "", 1, (m.Demand(revision.key, 2, 1, 0, 1, 1, 0, 0.0, 0.5),))
        assert world.homes.coordinate(late, SOMEBODY).elsewhere == (revision.key,)
        told = m.ModInstance(revision.key, NodeID("node-0"), 1, (), 1)
        assert not world.homes.mod_instance(told, SOMEBODY).home
        world.membership._confirm(world.fakes.now, 1)
        assert world.homes.coordinate(late, SOMEBODY).elsewhere == ()
        assert home.term == 1

    run(test)


def test_where_no_controller_answers_a_process_that_stood_still_asks_the_others() -> None:
    def test(world: World) -> None:
        (revision,) = mine(1)
        world.scan([revision])
        world.view(1, OTHER, "node-0")
        world.settle()
        world.fakes.now += 5.0
        world.homes.tick()
        world.fakes.now += 0.9
        world.homes.tick()
        assert world.recalls() == []
        world.fakes.now += 0.9
        world.homes.tick()
        ((addr, message, done),) = world.recalls()
        assert (addr, message.revisions) == (f"{OTHER}:1", ())
        assert world.homes._acting(revision.key) is None
        done(m.RecallReply((), 1))
        assert world.homes._acting(revision.key) is not None

    run(test)


def test_one_that_hears_nothing_of_the_controller_hears_of_a_newer_view_from_the_others() -> None:
    def test(world: World) -> None:
        (revision,) = mine(1)
        world.scan([revision])
        world.view(1, OTHER, "node-0")
        world.settle()
        world.membership._confirm(world.fakes.now, 1)
        world.passes(2.0)
        ((addr, message, done),) = world.recalls()
        assert (addr, message.revisions) == (f"{OTHER}:1", ())
        assert world.homes._acting(revision.key) is not None
        done(m.RecallReply((), 2))
        assert world.homes._acting(revision.key) is None

    run(test)


def test_a_revision_that_serves_with_fewer_than_it_wants_says_why_and_is_no_failed_one() -> None:
    def home(ready: int, agreed: int, reason: str) -> Any:
        return SimpleNamespace(
            fleet=SimpleNamespace(ready=ready, wanted=agreed),
            agreed=agreed,
            setbacks=SimpleNamespace(count=1, reason=reason),
            failed=False,
            goal=SimpleNamespace(activity=SimpleNamespace(phase="serving")),
            held=0,
        )

    def said(ready: int, agreed: int, reason: str = "is full") -> tuple[object, object]:
        facts = status_of(home(ready, agreed, reason))
        return facts["reason"], facts["short"]

    assert said(1, 6) == ("", "is full")
    assert said(0, 6) == ("is full", "")
    assert said(6, 6) == ("", "")
