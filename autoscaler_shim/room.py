"""What a Schedule function says of room: to homes that wait for it, to homes that can make some, and to its like.

Carries out the line's TellRoom and AskRoom (core/schedule/line.py), and the gossip of core/schedule/rooms.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator

from kserve_ext.core import rendezvous
from kserve_ext.core.facts import Resources
from kserve_ext.core.ids import FunctionID
from kserve_ext.core.schedule.facts import AskRoom, TellRoom
from kserve_ext.core.schedule.machine import ScheduleMachine
from kserve_ext.core.schedule.rooms import Room as Summary
from kserve_ext.rpc import Rpc, RpcError
from kserve_ext.rpc.membership import Membership
from kserve_ext.wire.messages import (
    Action,
    Coordinate,
    CoordinateReply,
    MadeRoom,
    MakeRoom,
    Message,
    Room,
    RoomFor,
)

log = logging.getLogger(__name__)

GOSSIP_PERIOD_S = 0.5
GIVE_PERIOD_S = 0.02
GIVE_AGAIN_S = 0.2
TIMEOUT_S = 1.0


class RoomTold:
    """Of one Schedule function."""

    def __init__(self, me: FunctionID, rpc: Rpc, membership: Membership, machine: ScheduleMachine) -> None:
        self.me, self.rpc, self.membership, self.machine = me, rpc, membership, machine
        self._loop = asyncio.get_running_loop()
        self._anybody_waits = asyncio.Event()

    # --- those who wait

    def wake(self) -> None:
        """A call was answered: somebody may be in line since."""
        if self.machine.line.waiters:
            self._anybody_waits.set()

    async def give(self) -> None:
        """While anybody waits: soon after nodes have changed, and now and then; costs nothing while nobody does."""
        seen, due = -1, 0.0
        while True:
            await self._anybody_waits.wait()
            await asyncio.sleep(GIVE_PERIOD_S)
            learned = self.machine.partition.learned
            if learned != seen or self._loop.time() >= due:
                seen, due = learned, self._loop.time() + GIVE_AGAIN_S
                for i in self.machine.tick(self._loop.time()):
                    if isinstance(i, TellRoom):
                        self._tell(i)
                    else:
                        self._ask(i)
            if not self.machine.line.waiters:
                self._anybody_waits.clear()

    def _tell(self, i: TellRoom) -> None:
        def done(reply: Message | RpcError) -> None:
            if isinstance(reply, CoordinateReply) and set(i.revisions) <= set(reply.elsewhere):
                self.machine.line.leaves(i.key)

        self._coordinate(i.home_addr, RoomFor(self.me, i.revisions), done)

    def _ask(self, i: AskRoom) -> None:
        dispatchers = [FunctionID(d.id) for d in self.membership.view.of("dispatch")]
        home = rendezvous.owner(i.home_key, dispatchers)
        log.info("%s: asks the home of %s for %d on %s", i.reason, i.victim, i.count, i.node)

        def done(reply: Message | RpcError) -> None:
            made = 0
            if isinstance(reply, CoordinateReply):
                made = sum(a.count for a in reply.actions if isinstance(a, MadeRoom))
            self.machine.line.yielded(i, made, self._loop.time())

        action = MakeRoom(i.victim, i.node, i.count, i.priority, i.reason)
        self._coordinate(self.membership.addr_of(home) if home else "", action, done)

    def _coordinate(
        self, addr: str, action: RoomFor | MakeRoom, done: Callable[[Message | RpcError], None]
    ) -> None:
        message = Coordinate(self.me, self.membership.addr, self.membership.view.epoch, (action,))
        self.rpc.call_soon(addr, message, done, TIMEOUT_S)

    # --- its like

    async def gossip(self) -> None:
        """Tells other Schedule functions how much room there is where."""

        def done(reply: Message | RpcError) -> None:
            if isinstance(reply, CoordinateReply):
                self.machine.rooms.heard(read(reply.actions))

        while True:
            await asyncio.sleep(GOSSIP_PERIOD_S)
            for to, rooms, wants in self.machine.gossip():
                epoch, actions = self.membership.view.epoch, tuple(written(room) for room in rooms)
                message = Coordinate(self.me, self.membership.addr, epoch, actions, wants)
                self.rpc.call_soon(self.membership.addr_of(to), message, done, TIMEOUT_S)


def read(actions: Iterable[Action]) -> Iterator[Summary]:
    for action in actions:
        if isinstance(action, Room):
            capacity = Resources(*action.capacity) if action.capacity else None
            free, largest = Resources(*action.free), Resources(*action.largest)
            yield Summary(action.function, action.version, free, largest, action.nodes, capacity)


def written(room: Summary) -> Room:
    capacity = tuple(room.capacity or ())
    return Room(room.function, tuple(room.free), tuple(room.largest), room.nodes, capacity, room.version)
