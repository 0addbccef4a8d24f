"""The Schedule function's shell: carries out what core/schedule decides, and feeds each outcome back.

It owns one partition of the nodes (partition.py beside it: which, and how they change hands), answers homes
(Schedule) and other Schedule functions (Schedule with hops, Coordinate with Room), and tells both of room (room.py).
It decides nothing about scale, and admits nothing: that is home's and the node's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from autoscaler_shim.partition import Nodes
from autoscaler_shim.room import RoomTold, read, written
from kserve_ext.api.weights import read_weights
from kserve_ext.core import rendezvous
from kserve_ext.core.facts import Mark, View
from kserve_ext.core.ids import FunctionID, NodeID
from kserve_ext.core.schedule import facts as core
from kserve_ext.core.schedule.machine import ScheduleMachine
from kserve_ext.rpc import Caller, Rpc, RpcError
from kserve_ext.rpc.answer import Answer
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.process import Process, wall_time
from kserve_ext.store import Store
from kserve_ext.store.opening import open_store
from kserve_ext.wire.messages import (
    Commit,
    Coordinate,
    CoordinateReply,
    Describe,
    Description,
    Item,
    Load,
    Message,
    Placed,
    Placements,
    Probe,
    Refused,
    Schedule,
    Start,
    StartReply,
    Update,
)

log = logging.getLogger(__name__)

START_TIMEOUT_S = 2.0
PROBE_TIMEOUT_S = 0.1  # placements wait for it
FORWARD_TIMEOUT_S = 5.0
FINISH_S = 5.0


class ScheduleFunction:
    """One Schedule function in one process."""

    def __init__(
        self,
        me: FunctionID,
        rpc: Rpc,
        membership: Membership,
        weights: Mapping[str, float] | None = None,
        store: Store | None = None,
    ) -> None:
        """`weights` of namespaces."""
        self.me = me
        self.rpc = rpc
        self.membership = membership
        self.machine = ScheduleMachine(me, membership.member.incarnation, weights)
        self.asked = self.decisions = 0
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, tuple[Schedule, Answer]] = {}
        #: wakes who waits for the last answer
        self._answered = asyncio.Event()
        self.nodes = Nodes(me, rpc, membership, self.machine.partition, store)
        self.room = RoomTold(me, rpc, membership, self.machine)
        rpc.handle(Schedule, self.schedule)
        rpc.handle(Coordinate, self.coordinate)
        rpc.handle(Describe, self.describe)
        membership.on_view(self.view_changed)

    # --- from ClusterMgr, the view and the other Schedule functions

    def view_changed(self, view: View) -> None:
        self.machine.rooms.view({m.id for m in view.of("schedule")})
        self.nodes.view(view)
        mine = {node for node, function in (self.nodes.handover.owners or {}).items() if function == self.me}
        self.rpc.warm(m.addr for m in view.members if NodeID(m.id) in mine or m.kind == "schedule")

    def coordinate(self, message: Coordinate, caller: Caller) -> CoordinateReply:
        better = self.machine.rooms.heard(read(message.actions), wants=message.wants)
        return CoordinateReply(tuple(written(room) for room in better), self.membership.view.epoch)

    # --- placement

    def schedule(self, message: Schedule, caller: Caller) -> Placements | Answer:
        if self._stale(message):
            return Placements((), stale=True, epoch=self.membership.view.epoch)
        wanted = [core.Wanted(i, item.revision) for item in message.items for i in item.ids]
        self.asked += len(wanted)
        op, instructions = self.machine.schedule(
            wanted,
            gang=message.gang,
            reserve=message.reserve,
            hops=message.hops,
            near=message.near,
            who=core.Standing(message.home_addr, message.waited_s),
            now=self._loop.time(),
        )
        answer = Answer()
        self._calls[op] = (message, answer)
        self._carry_out(instructions)
        return answer

    def _stale(self, message: Schedule) -> bool:
        """An older view than ours, and under ours somebody else is the home."""
        view = self.membership.view
        if message.epoch >= view.epoch:
            return False
        dispatchers = [m.id for m in view.of("dispatch")]
        return any(rendezvous.owner(i.revision.home_key, dispatchers) != message.home for i in message.items)

    def _carry_out(self, instructions: Sequence[core.Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case core.SendStart():
                    self._send_start(instruction)
                case core.SendCommit():
                    self._send_commit(instruction)
                case core.Forward():
                    self._forward(instruction)
                case core.SendProbe():
                    self._send_probe(instruction)
                case core.Answer():
                    self._answer(instruction)

    def _send_start(self, i: core.SendStart) -> None:
        call, _ = self._calls[i.op]
        message = Start(
            instance=i.instance,
            revision=i.revision,
            epoch=call.epoch,
            home=call.home,
            home_addr=call.home_addr,
            waiting=call.waiting,
            reserve=i.reserve,
            marks=(*call.marks, Mark("placed", wall_time(), f"{self.me} -> {i.node}")),
            term=(term := self.nodes.term(i.node)),
        )

        def done(reply: Message | RpcError) -> None:
            if isinstance(reply, StartReply):
                if reply.moved:
                    self.nodes.refused(i.node, term)
                reason = None if reply.admitted else reply.reason
                admitted = i.revision if reply.brief else None
                out = self.machine.started(
                    i.op,
                    i.instance,
                    i.node,
                    i.addr,
                    reason,
                    reply.status,
                    stale=reply.stale,
                    admitted=admitted,
                )
            else:
                assert isinstance(reply, RpcError)
                out = self.machine.start_lost(i.op, i.instance, i.node, str(reply), sent=reply.sent)
            self._carry_out(out)

        history = self.rpc.history
        if history.on:
            key = i.revision.key
            history.say("starting", instance=i.instance, revision=key, node=i.node, epoch=call.epoch)
        self.rpc.call_soon(i.addr, message, done, START_TIMEOUT_S)

    def _send_probe(self, i: core.SendProbe) -> None:
        def done(reply: Message | RpcError) -> None:
            status = reply.status if isinstance(reply, Update) else None
            self._carry_out(self.machine.probed(i.op, i.node, status, self._loop.time()))

        self.rpc.call_soon(i.addr, Probe(), done, PROBE_TIMEOUT_S)

    def _send_commit(self, i: core.SendCommit) -> None:
        epoch = self.membership.view.epoch
        message = Commit(instances=i.instances, epoch=epoch, cancel=i.cancel, reason=i.reason)

        def done(reply: Message | RpcError) -> None:
            if i.cancel:  # a lost cancel heals by itself: the reservation lapses
                if isinstance(reply, StartReply):
                    self.machine.partition.refresh(reply.status)
                return
            if isinstance(reply, StartReply):
                reason = None if reply.admitted else reply.reason
                out = self.machine.committed(i.op, i.instances, reason, reply.status)
            else:
                out = self.machine.committed(i.op, i.instances, str(reply), None)
            self._carry_out(out)

        self.rpc.call_soon(i.addr, message, done, START_TIMEOUT_S)

    def _forward(self, i: core.Forward) -> None:
        call, _ = self._calls[i.op]
        by_revision: dict[str, Item] = {}
        for wanted in i.wanted:
            item = by_revision.get(wanted.revision.key, Item(wanted.revision, ()))
            by_revision[wanted.revision.key] = Item(item.revision, (*item.ids, wanted.instance))
        message = Schedule(
            items=tuple(by_revision.values()),
            epoch=call.epoch,
            home=call.home,
            home_addr=call.home_addr,
            waiting=call.waiting,
            gang=False,
            hops=i.hops,
            marks=(*call.marks, Mark("borrowed", wall_time(), f"{self.me} -> {i.function}")),
            reserve=i.reserve,
            near=call.near,
            waited_s=call.waited_s,
        )

        def done(reply: Message | RpcError) -> None:
            placed: list[core.Place] = []
            if isinstance(reply, Placements):
                placed = [core.Place(p.instance, p.node, p.addr) for p in reply.placed]
                refused = [core.Refusal(r.instance, r.reason, r.unknown) for r in reply.refused]
                if reply.room is not None:
                    self.machine.rooms.heard(read([reply.room]))
                if reply.stale:
                    refused = [core.Refusal(w.instance, f"{i.function} knows a newer view") for w in i.wanted]
            else:
                assert isinstance(reply, RpcError)
                unknown = NodeID("?" if reply.sent else "")
                why = f"{i.function} did not answer: {reply}"
                refused = [core.Refusal(w.instance, why, unknown) for w in i.wanted]
            self._carry_out(self.machine.forwarded(i.op, i.function, placed, refused))

        member = self.membership.view.member(i.function)
        addr = member.addr if member else ""
        self.rpc.call_soon(addr, message, done, FORWARD_TIMEOUT_S)

    def _answer(self, i: core.Answer) -> None:
        call, answer = self._calls.pop(i.op)
        self.decisions += len(i.placed)
        self.room.wake()
        if self.rpc.history.on:
            refused = [(r.instance, r.reason) for r in i.refused]
            placed = [(p.instance, p.node) for p in i.placed]
            self.rpc.history.say("placed", placed=placed, refused=refused)
        answer.give(
            Placements(
                placed=tuple([Placed(p.instance, p.node, p.addr) for p in i.placed]),
                refused=tuple([Refused(r.instance, r.reason, r.unknown, r.never) for r in i.refused]),
                epoch=self.membership.view.epoch,
                room=written(self.machine.room()) if call.hops else None,
            )
        )
        self._answered.set()

    async def finish(self) -> None:
        """What it is asked to place when it is to end is answered first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_S):
                while self._calls:
                    self._answered.clear()
                    await self._answered.wait()

    # --- description

    def load(self) -> Load:
        return Load(requests=self.asked, queued=self.machine.under_way)

    def describe(self, message: Describe, caller: Caller) -> Description:
        machine = self.machine
        body = {
            "id": self.me,
            "kind": "schedule",
            "epoch": self.membership.view.epoch,
            "nodes": [
                {
                    "node": c.status.node,
                    "since": self.nodes.term(c.status.node),
                    "free": c.free._asdict(),
                    "capacity": c.status.capacity._asdict(),
                    "models": c.status.models,
                    "slots": dict(c.status.slots),
                    "labels": dict(c.status.labels),
                }
                for c in machine.partition.candidates()
            ],
            "placed": machine.placed_total,
            "refused": machine.refused_total,
            "conflicts": machine.conflicts_total,
            "under_way": machine.under_way,
            "probes": machine.knowledge.cache.probes,
            "answers_reused": machine.knowledge.cache.reused,
            "waiting": machine.line.describe(self._loop.time()),
            "room_told": machine.line.told_total,
            "preempted": machine.line.preempted_total,
            "connections": self.rpc.connections(),
            "rooms": {f: room.free._asdict() for f, room in machine.rooms.known.items()},
        }
        return Description(msgspec.json.encode(body))


def _weights(data: Path) -> dict[str, float]:
    """Of namespaces, as cluster.json has them; functions that the controller starts find them there, too."""
    try:
        return read_weights(str(json.loads((data / "cluster.json").read_text()).get("weights") or ""))
    except (OSError, ValueError) as error:
        log.warning("every namespace has weight 1: %s", error)
        return {}


def main(args: argparse.Namespace) -> int:
    process = Process.from_args(args, kind="schedule")
    weights = _weights(process.data)

    async def run(rpc: Rpc, membership: Membership) -> None:
        store = open_store(process, rpc)
        function = ScheduleFunction(FunctionID(process.id), rpc, membership, weights, store)
        membership.report_load(function.load)
        await membership.start()
        process.ready()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(function.room.gossip())
                group.create_task(function.nodes.keep_copy())
                group.create_task(function.room.give())
        finally:
            await function.finish()
            await store.close()

    return process.run(run)
