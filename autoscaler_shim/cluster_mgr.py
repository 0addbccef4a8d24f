"""The ClusterMgr function's shell: takes nodes' Updates, tells owners and controller what its machine decides."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Iterable

import msgspec

from kserve_ext.core.cluster_mgr import ClusterMgrMachine, Instruction, TellController, TellOwner
from kserve_ext.core.facts import View
from kserve_ext.core.ids import FunctionID
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.process import Process
from kserve_ext.wire.messages import Ack, Describe, Description, Leave, Load, ModNode, Update

log = logging.getLogger(__name__)

TICK_S = 0.1
CALL_TIMEOUT_S = 1.0


class ClusterMgr:
    """One ClusterMgr function in one process."""

    def __init__(self, me: FunctionID, rpc: Rpc, membership: Membership) -> None:
        self.me = me
        self.rpc = rpc
        self.membership = membership
        self.loop = asyncio.get_running_loop()
        self.machine = ClusterMgrMachine(me, self.loop.time())
        self.updates = 0
        rpc.handle(Update, self.update)
        rpc.handle(Describe, self.describe)
        rpc.on_lost(lambda who: self.machine.lost(id(who.connection), self.loop.time()))
        membership.on_view(self.view_changed)

    def update(self, message: Update, caller: Caller) -> Ack:
        self.updates += 1
        self._carry_out(self.machine.update(message.status, id(caller.connection), self.loop.time()))
        return Ack(self.membership.view.epoch)

    def view_changed(self, view: View) -> None:
        self._carry_out(self.machine.view(view, self.loop.time()))
        self.rpc.warm(m.addr for m in view.of("schedule"))

    async def run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._carry_out(self.machine.tick(self.loop.time()))

    def load(self) -> Load:
        return Load(requests=self.updates)

    def describe(self, message: Describe, caller: Caller) -> Description:
        now = self.loop.time()
        nodes = [
            {"node": status.node, "heard_s_ago": round(now - heard, 2), "seq": status.seq}
            for status, heard in self.machine.nodes()
        ]
        body = {"id": self.me, "kind": "cluster_mgr", "epoch": self.membership.view.epoch, "nodes": nodes}
        body["connections"] = self.rpc.connections()
        return Description(msgspec.json.encode(body))

    def _carry_out(self, instructions: Iterable[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case TellOwner(owner, status, down):
                    message: ModNode | Leave = ModNode(status, down)
                    addr = self.membership.addr_of(owner)
                case TellController(status, reason):
                    log.warning("node %s is down: %s", status.node, reason)
                    self.rpc.history.say("down", node=status.node, reason=reason)
                    message = Leave(FunctionID(status.node), status.incarnation, by=self.me, reason=reason)
                    addr = self.membership.controller
            # What gets lost here is said again: status every second, a dead node by the next silence.
            self.rpc.call_soon(addr, message, lambda reply: None, CALL_TIMEOUT_S)


def main(args: argparse.Namespace) -> int:
    process = Process.from_args(args, kind="cluster_mgr")

    async def run(rpc: Rpc, membership: Membership) -> None:
        function = ClusterMgr(FunctionID(process.id), rpc, membership)
        membership.report_load(function.load)
        await membership.start()
        process.ready()
        await function.run()

    return process.run(run)
