"""Which nodes a Schedule function has: carries out what core/schedule/handover.py decides; keeps the store's copy.

Statuses that have changed are written behind, once a second at most; they are read when nobody hands a node over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import msgspec

from kserve_ext.core import partitions
from kserve_ext.core.facts import NodeStatus, View
from kserve_ext.core.ids import FunctionID, NodeID
from kserve_ext.core.schedule import handover as core
from kserve_ext.core.schedule.partition import Partition
from kserve_ext.rpc import Caller, Rpc, RpcError
from kserve_ext.rpc.membership import Membership
from kserve_ext.store import Store, Unavailable
from kserve_ext.wire.messages import (
    Ack,
    ClaimNodes,
    HandedNode,
    HandNodes,
    Message,
    ModNode,
    MovedNode,
    Probe,
    Update,
)

log = logging.getLogger(__name__)

PREFIX = "nodes/"
CALL_TIMEOUT_S = 1.0
TICK_S = 0.05
WRITE_S = 1.0
MOST_SCANS = 16  # nodes that are read one by one; more: all that there are, at once
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)


class Nodes:
    """Of one Schedule function."""

    def __init__(
        self, me: FunctionID, rpc: Rpc, membership: Membership, partition: Partition, store: Store | None
    ) -> None:
        self.me, self.rpc, self.membership, self.store = me, rpc, membership, store
        self.partition = partition
        self.handover = core.Handover(me, partition)
        self._loop = asyncio.get_running_loop()
        self._written: dict[NodeID, NodeStatus] = {}
        self._ticks: asyncio.TimerHandle | None = None
        self._reads: set[asyncio.Task[None]] = set()
        if store is not None:
            store.restate(self._known)
        rpc.handle(ClaimNodes, self.claim)
        rpc.handle(ModNode, self.mod_node)

    def view(self, view: View) -> None:
        functions = {m.id for m in view.members if m.kind == "schedule"}
        owners = partitions.owners(view, "schedule")
        self._carry_out(self.handover.view(view.epoch, owners, functions, self._loop.time()))

    def mod_node(self, message: ModNode, caller: Caller) -> Ack:
        status, epoch = message.status, self.membership.view.epoch
        if message.down:
            self.partition.forget(status.node)
            log.warning("node %s is down, places nothing there: %s", status.node, message.down)
            return Ack(epoch)
        owner = self.handover.heard(status, self._loop.time())
        if owner is not None and caller.epoch < epoch:  # it doesn't know yet
            self.rpc.call_soon(self.membership.addr_of(owner), message, lambda reply: None, CALL_TIMEOUT_S)
        return Ack(epoch)

    def claim(self, message: ClaimNodes, caller: Caller) -> HandNodes:
        answer = self.handover.claim(FunctionID(caller.name), message.epoch, message.nodes, self._loop.time())
        if answer.handed:
            given = " ".join(h.node for h in answer.handed)
            log.info("hands %s to %s under epoch %d", given, caller.name, message.epoch)
        handed = tuple(HandedNode(*what) for what in answer.handed)
        return HandNodes(answer.epoch, handed, tuple(MovedNode(*moved) for moved in answer.moved))

    def term(self, node: NodeID) -> int:
        """Under which we ask it for a start."""
        return self.handover.terms.get(node, 0)

    def refused(self, node: NodeID, term: int) -> None:
        """The node obeys a newer placer."""
        log.warning("node %s has another Schedule function since term %d", node, term)
        self._carry_out(self.handover.refused(node, term, self._loop.time()))

    async def keep_copy(self) -> None:
        """What has changed of nodes, to the store."""
        while self.store is not None:
            await asyncio.sleep(WRITE_S)
            now = {c.status.node: c.status for c in self.partition.candidates()}
            changed = [
                s
                for node, s in now.items()
                if node not in self._written or self._written[node]._replace(seq=s.seq) != s
            ]
            left = self._written.keys() - (self.handover.owners or {}).keys()
            self._written = now
            self.store.put([*map(_item, changed), *((PREFIX + node, None) for node in sorted(left))])

    # --- inside

    def _known(self) -> Iterator[tuple[str, bytes]]:
        """What a store that lost its content is told."""
        return map(_item, self._written.values())

    def _carry_out(self, instructions: list[core.Instruction]) -> None:
        for i in instructions:
            match i:
                case core.Claim():
                    self._claim(i)
                case core.Recall():
                    self._recall(i)
        if self.handover.busy and self._ticks is None:
            self._ticks = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticks = None
        self._carry_out(self.handover.tick(self._loop.time()))

    def _claim(self, i: core.Claim) -> None:
        def done(reply: Message | RpcError) -> None:
            if isinstance(reply, HandNodes):
                handed = tuple(core.Handed(*what) for what in reply.handed)
                moved = tuple(core.Moved(*what) for what in reply.moved)
                answer = core.Handing(reply.epoch, handed, moved)
                self._carry_out(self.handover.handed(i.to, i.epoch, answer, self._loop.time()))
            elif isinstance(reply, RpcError) and not reply.sent:
                self._carry_out(self.handover.nobody(i, self._loop.time()))

        addr = self.membership.addr_of(i.to)
        self.rpc.call_soon(addr, ClaimNodes(i.epoch, i.nodes), done, CALL_TIMEOUT_S)

    def _recall(self, i: core.Recall) -> None:
        def done(reply: Message | RpcError) -> None:
            if isinstance(reply, Update):
                self.handover.heard(reply.status, self._loop.time())

        for node in i.nodes:
            self.rpc.call_soon(self.membership.addr_of(node), Probe(), done, CALL_TIMEOUT_S)
        if self.store is not None:
            task = self._loop.create_task(self._read(self.store, i.nodes))
            self._reads.add(task)
            task.add_done_callback(self._reads.discard)

    async def _read(self, store: Store, nodes: tuple[NodeID, ...]) -> None:
        wanted = [PREFIX] if len(nodes) > MOST_SCANS else [PREFIX + node for node in nodes]
        for prefix in wanted:
            try:
                found = await store.scan(prefix)
            except Unavailable as error:
                log.warning("takes nodes without the store's copy: %s", error)
                return
            for key, (value, _) in found.items():
                try:
                    self.handover.stored(msgspec.msgpack.decode(value, type=NodeStatus))
                except UNREADABLE as error:
                    log.warning("%s in the store is of no use: %s", key, error)


def _item(status: NodeStatus) -> tuple[str, bytes]:
    return PREFIX + status.node, msgspec.msgpack.encode(status)
