"""What goes over the wire when a cluster is full: between a Schedule function, homes and nodes, without processes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from autoscaler_shim import room as shell
from autoscaler_shim.schedule import ScheduleFunction
from kserve_ext.core.facts import Holding, Instance, Member, NodeStatus, Resources, Revision, Scale, View
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.rpc import Caller, RpcError
from kserve_ext.rpc.history import History
from kserve_ext.rpc.membership import Membership
from kserve_ext.wire import messages as m
from tests.core.schedule.test_placement import revision
from tests.shell.test_homes import World, mine

ME, HOME, NODE = FunctionID("schedule-0"), FunctionID("dispatch-0"), NodeID("node-0")
SOMEBODY = Caller("dispatch-0", 0, b"", b"", 0.0)
Done = Callable[[m.Message | RpcError], None]
SIZE = Resources(1000, 8192)


class Wire:
    """The rpc of one Schedule function: calls wait for the test to answer them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, m.Message, Done]] = []
        self.told: asyncio.Queue[tuple[str, Any, Done]] = asyncio.Queue()
        self.history = History(ME, "")
        self.member = Member(ME, "schedule", "schedule-0:1", 1)
        self.name, self.epoch = ME, lambda: 1

    def call_soon(self, addr: str, message: m.Message, done: Done, timeout_s: float) -> None:
        if isinstance(message, m.Coordinate):
            self.told.put_nowait((addr, message, done))
        else:
            self.calls.append((addr, message, done))

    def ignore(self, *ignored: object) -> None: ...

    handle = on_peer_lost = warm = ignore

    def take(self, kind: type[m.Message]) -> tuple[str, Any, Done]:
        """The only call of this kind, taken out."""
        (found,) = [c for c in self.calls if isinstance(c[1], kind)]
        self.calls.remove(found)
        return found


class Function:
    def __init__(self) -> None:
        self.wire = Wire()
        membership = Membership(self.wire, self.wire.member, "controller:1")  # type: ignore[arg-type]
        self.it = ScheduleFunction(ME, self.wire, membership)  # type: ignore[arg-type]
        members = [self.wire.member, Member(HOME, "dispatch", "dispatch-0:1", 1)]
        members.append(Member(FunctionID(NODE), "node", "node-0:1", 1))
        membership._take(View(1, tuple(sorted(members))))
        self.seq = 0

    def node(self, free: Resources, *holdings: Holding) -> None:
        self.seq += 1
        status = NodeStatus(NODE, "node-0:1", 1, self.seq, SIZE, free, holdings=holdings)
        self.it.machine.partition.learn(status, asyncio.get_running_loop().time())

    async def ask(self, of: Revision, instance: str = "i1") -> m.Placements:
        item = m.Item(of, (InstanceID(instance),))
        found = self.it.schedule(m.Schedule((item,), 1, HOME, "dispatch-0:1", waited_s=3.0), SOMEBODY)
        assert not isinstance(found, m.Placements)
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        found.then(told.set_result)
        placements: m.Placements = await asyncio.wait_for(told, 100.0)
        return placements

    async def until_it_calls(self) -> tuple[str, Any, Done]:
        return await asyncio.wait_for(self.wire.told.get(), 100.0)


def run(test: Callable[[Function], Awaitable[None]]) -> None:
    async def main() -> None:
        function = Function()
        giving = asyncio.create_task(function.it.room.give())
        try:
            await test(function)
        finally:
            giving.cancel()

    asyncio.run(main())


def test_a_home_is_told_as_soon_as_a_node_has_room_and_nobody_else_gets_it() -> None:
    async def test(function: Function) -> None:
        function.node(Resources(0, 8192))
        answer = await function.ask(revision())
        assert "partition schedule-0 is full" in answer.refused[0].reason
        function.node(SIZE)
        addr, message, done = await function.until_it_calls()
        assert addr == "dispatch-0:1"
        assert message.actions == (m.RoomFor(ME, (revision().key,)),)
        other = await function.ask(revision(key="default/other-00001"), "i2")
        assert other.refused, "the room is kept"
        done(m.CoordinateReply())
        placing = asyncio.ensure_future(function.ask(revision(), "i3"))
        await asyncio.sleep(0)
        node, start, _ = function.wire.take(m.Start)
        assert (node, start.instance) == ("node-0:1", "i3")
        placing.cancel()

    run(test)


def test_a_home_that_does_not_want_it_any_more_leaves_the_line() -> None:
    async def test(function: Function) -> None:
        function.node(Resources(0, 8192))
        await function.ask(revision())
        function.node(SIZE)
        _, message, done = await function.until_it_calls()
        done(m.CoordinateReply(elsewhere=message.actions[0].revisions))
        assert not function.it.machine.line.waiters
        assert function.it.machine.partition.candidates()[0].free == SIZE

    run(test)


def test_the_home_of_a_lower_class_is_asked_for_room_and_its_answer_is_believed() -> None:
    async def test(function: Function) -> None:
        low = Holding(revision(key="default/low-00001").key, "default/low-00001", 1, SIZE, 1, 5.0)
        function.node(Resources(0, 0), low)
        high = revision()._replace(priority=9, preempts=True)
        await function.ask(high)
        addr, message, done = await function.until_it_calls()
        assert addr == "dispatch-0:1"
        (asked,) = message.actions
        assert (asked.victim, asked.node, asked.count, asked.priority) == ("default/low-00001", NODE, 1, 9)
        assert asked.reason == "preempted by default/m-00001 (priority 9 over 1)"
        done(m.CoordinateReply((m.MadeRoom(asked.victim, NODE, 1),)))
        assert function.it.machine.line.preempted_total == 1
        function.node(SIZE)
        _, message, _ = await function.until_it_calls()
        assert message.actions == (m.RoomFor(ME, (high.key,)),)

    run(test)


def test_an_idle_function_looks_at_nothing() -> None:
    async def test(function: Function) -> None:
        ticks = 0

        def tick(now: float) -> list[Any]:
            nonlocal ticks
            ticks += 1
            return []

        function.it.machine.tick = tick  # type: ignore[method-assign]
        for _ in range(10):
            function.node(SIZE)
            await asyncio.sleep(shell.GIVE_PERIOD_S)
        assert not ticks

    run(test)


def test_homes_answer_what_a_schedule_function_asks() -> None:
    async def main() -> None:
        world = World()
        (of,) = mine(1)
        of = of._replace(scale=Scale(min=0, initial=1), needs=Resources(100))
        world.scan([of])
        world.view(1, "node-0")
        node = next(d for addr, _, d in world.recalls() if addr == "node-0:1")
        fact = Instance(InstanceID("i"), of.key, NodeID("node-0"), "ready", "host:1")
        node(m.RecallReply((fact,), 1))
        world.settle()
        world.homes.tick()
        asked = m.Coordinate(ME, "schedule-0:1", 1, (m.RoomFor(ME, (of.key,)),))
        assert world.homes.coordinate(asked, SOMEBODY).elsewhere == (of.key,), "nothing is missing"
        action = m.MakeRoom(of.key, NodeID("node-0"), 2, 9, "preempted by x")
        answer = world.homes.coordinate(m.Coordinate(ME, "schedule-0:1", 1, (action,)), SOMEBODY)
        assert answer.actions == (m.MadeRoom(of.key, NodeID("node-0"), 1),)
        world.homes.tick()
        stops = [x for _, x, _ in world.fakes.calls if isinstance(x, m.Stop)]
        assert [(s.instance, s.reason) for s in stops] == [("i", "preempted by x")]

    asyncio.run(main())
