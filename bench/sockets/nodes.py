"""Many node agents in one process: `python -m bench.sockets.nodes --data DIR --controller ADDR --first N --count N`.

Each is the real core of a node agent behind an address of its own: it admits by its own ledger, joins the view, tells
homes, reports to its ClusterMgr function. Only what it starts is emulated: an instance is ready in the next turn of
the loop, and ends when it is told to. Prints the address at which Describe answers with the sums of its agents' own
counters; Describe("end") ends all instances, as if their homes knew. With `--alone` its agents join no view, as what
is asked of them is asked directly, and their addresses follow.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import uvloop

from autoscaler_shim.node.orders import order_of, reply_of
from autoscaler_shim.node.telling import Telling
from kserve_ext.core.facts import Mark, Member, Resources, View
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.core.node import facts
from kserve_ext.core.node.admission import Ledger
from kserve_ext.core.node.instance_life import facts_of
from kserve_ext.core.node.machine import NodeMachine
from kserve_ext.core.node.slots import Slots
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.process import settle_memory
from kserve_ext.wire import messages as m

CAPACITY = Resources(cpu_milli=1_000_000, memory_mib=1_000_000)
HTTP = "127.0.0.1:9"  # where nobody needs to listen: no request is sent
#: when an instance was found to be ready, by the clock of this machine
READY_MARK = "found_ready"
TICK_S = 0.5
TURNS = 10


class EmulatedNode:
    def __init__(self, name: str, key: bytes) -> None:
        self.rpc = Rpc(name, key)
        self.loop = asyncio.get_running_loop()
        self._ready: list[InstanceID] = []
        self._offset = time.time() - self.loop.time()

    async def open(self, controller: str, joins: bool) -> str:
        """Its address."""
        addr = await self.rpc.listen("127.0.0.1")
        member = Member(FunctionID(self.rpc.name), "node", addr, time.time_ns())
        self.membership = Membership(self.rpc, member, controller)
        ledger = Ledger(CAPACITY)
        node = NodeID(member.id)
        self.machine = NodeMachine(node, addr, member.incarnation, ledger, Slots(ledger, 0))
        self.telling = Telling(self.machine, self.rpc, self.membership, self.now, self.carry_out)
        self.rpc.handle(m.Start, self.start)
        self.rpc.handle(m.Commit, self.commit)
        self.rpc.handle(m.Stop, self.stop)
        self.rpc.handle(m.Probe, self.probe)
        self.rpc.handle(m.Recall, self.recall)
        self.membership.on_view(self.view)
        self.membership.report_load(lambda: m.Load(requests=self.machine.admitted_total))
        if joins:
            await self.membership.start()
        return addr

    def now(self) -> float:
        return self._offset + self.loop.time()

    # --- as autoscaler_shim/node/agent.py answers

    def start(self, message: m.Start, caller: Caller) -> m.StartReply:
        if message.waiting:
            self.rpc.warm(message.waiting)
        verdict, out = self.machine.start(order_of(message), self.now())
        self.carry_out(out)
        return reply_of(verdict, self.machine, start=True)

    def commit(self, message: m.Commit, caller: Caller) -> m.StartReply:
        verdict, out = self.machine.commit(
            message.instances, message.epoch, self.now(), cancel=message.cancel, reason=message.reason
        )
        self.carry_out(out)
        return reply_of(verdict, self.machine)

    def stop(self, message: m.Stop, caller: Caller) -> m.Ack:
        _, out = self.machine.stop(
            message.instance, message.epoch, message.drain_s, message.reason, self.now()
        )
        self.carry_out(out)
        return m.Ack(self.membership.view.epoch)

    def probe(self, message: m.Probe, caller: Caller) -> m.Update:
        return m.Update(self.machine.status())

    def recall(self, message: m.Recall, caller: Caller) -> m.RecallReply:
        found, epoch = self.machine.recall(message.epoch, message.home_addr, message.revisions, self.now())
        return m.RecallReply(instances=found, epoch=epoch)

    def view(self, view: View) -> None:
        dispatch = {FunctionID(d.id): d.addr for d in view.of("dispatch")}
        self.machine.view(view.epoch, dispatch, self.now())

    # --- what it runs

    def carry_out(self, instructions: Iterable[facts.Instruction]) -> None:
        for i in instructions:
            match i:
                case facts.Tell():
                    self.telling.tell(i)
                case facts.Report():
                    self.telling.report()
                case facts.Launch():
                    if not self._ready:
                        self.loop.call_soon(self._launched)
                    self._ready.append(i.instance)
                case facts.Signal():
                    self.loop.call_soon(self._exited, i.instance)

    def _launched(self) -> None:
        ready, self._ready = self._ready, []
        now, lives = self.now(), self.machine.lives
        for instance in ready:
            self.carry_out(lives.launched(instance, "emulated", time.time_ns(), now))
            marks = (Mark(READY_MARK, time.time()),)
            self.carry_out(lives.observed(instance, "ready", HTTP, marks, now))

    def _exited(self, instance: InstanceID) -> None:
        self.carry_out(self.machine.lives.exited(instance, 0, None, "", self.now()))

    def end(self) -> None:
        """All of its instances are gone, and their homes know: nothing is left to tell or to remember of them."""
        lives, homes = self.machine.lives, self.machine.homes
        for instance in list(lives.known):
            self._exited(instance)
        for key in {life.revision.key for life in lives.known.values()}:
            for _ in ("they are gone", "nothing is left"):
                told = facts.Tell(key, "", True, facts_of(lives.of(key), self.machine.node), True, 0)
                self.carry_out(lives.acknowledged(told, True, (), homes.obeyed(key), self.now()))

    def tick(self) -> None:
        self.carry_out(self.machine.tick(self.now()))


class Nodes:
    def __init__(self, nodes: list[EmulatedNode], rpc: Rpc) -> None:
        self.nodes = nodes
        rpc.handle(m.Describe, self.describe)

    def describe(self, message: m.Describe, caller: Caller) -> m.Description:
        if message.what == "end":
            for node in self.nodes:
                node.end()
        machines = [node.machine for node in self.nodes]
        sums = {
            "pid": os.getpid(),
            "admitted": sum(machine.admitted_total for machine in machines),
            "refused": sum(machine.refused_total for machine in machines),
            "running": sum(machine.lives.running for machine in machines),
            "calls": sum(node.rpc.calls for node in self.nodes),
            "dials": sum(node.rpc.connections()["dials"] for node in self.nodes),
        }
        return m.Description(msgspec.json.encode(sums))

    async def ticks(self) -> None:
        """Agents take turns, so that they don't all report at the same moment."""
        turn = 0
        while True:
            await asyncio.sleep(TICK_S / TURNS)
            turn = (turn + 1) % TURNS
            for node in self.nodes[turn::TURNS]:
                node.tick()


async def run(args: argparse.Namespace) -> None:
    key = (args.data / "cluster.key").read_bytes()
    rpc = Rpc(f"nodes-{args.first}", key)
    nodes = [EmulatedNode(f"node-{args.first + k:04d}", key) for k in range(args.count)]
    addr = await rpc.listen("127.0.0.1")
    addrs: list[str] = []
    for at in range(0, len(nodes), 10):
        opening = (node.open(args.controller, not args.alone) for node in nodes[at : at + 10])
        addrs += await asyncio.gather(*opening)
    found = Nodes(nodes, rpc)
    reports = [asyncio.create_task(node.telling.run()) for node in nodes]
    ticks = asyncio.create_task(found.ticks())
    settle_memory()  # as the processes of the cluster do
    print(*[addr, *(addrs if args.alone else ())], flush=True)
    await asyncio.gather(ticks, *reports)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sockets.nodes", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--controller", required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=105)
    parser.add_argument("--alone", action="store_true")
    uvloop.run(run(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
