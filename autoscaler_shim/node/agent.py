"""The node agent's process: answers Schedule functions, homes and its own instances, carries out what its machine
decides, and finds its instances again when it has been away.

The decisions are kserve_ext/core/node/machine.py's. Its end, however it comes, ends no instance: `galaxy down` ends
those by their files (cleanup.py), and the next agent of this node adopts them.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from autoscaler_shim.node import capacity, recovery
from autoscaler_shim.node.ahead import Ahead
from autoscaler_shim.node.capacity import Declared
from autoscaler_shim.node.describe import describe
from autoscaler_shim.node.folders import NodeFolder, write_json
from autoscaler_shim.node.instances import Instances
from autoscaler_shim.node.models import ModelCache
from autoscaler_shim.node.orders import order_of, reply_of
from autoscaler_shim.node.process_backend import SLEEP_REFUSED, ProcessBackend, base_environment
from autoscaler_shim.node.readiness import POLL_S, ReadySocket
from autoscaler_shim.node.recording import NodeHistory
from autoscaler_shim.node.telling import Telling
from autoscaler_shim.node.watcher import Watcher
from autoscaler_shim.node.zygotes import ZygotePool
from kserve_ext.core import pulse, rendezvous
from kserve_ext.core.facts import Resources, View
from kserve_ext.core.ids import FunctionID, NodeID
from kserve_ext.core.node import facts
from kserve_ext.core.node.admission import Held, Ledger
from kserve_ext.core.node.machine import NodeMachine
from kserve_ext.core.node.slots import Slots
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.process import Process
from kserve_ext.store.opening import open_store
from kserve_ext.wire import messages as m

log = logging.getLogger(__name__)

TICK_S = 0.1
LOGS_PERIOD_S = 5.0

add_args = capacity.add_args


class NodeAgent:
    """One node."""

    def __init__(
        self,
        rpc: Rpc,
        membership: Membership,
        folder: NodeFolder,
        key_file: Path,
        declared: Declared,
        timing: facts.Timing = facts.Timing(),  # noqa: B008
    ) -> None:
        me = membership.member
        self.rpc, self.membership, self.folder = rpc, membership, folder
        self._epoch_s = time.time() - asyncio.get_running_loop().time()
        ledger = Ledger(declared.resources, declared.devices)
        small = dict.fromkeys(capacity.FUNCTION_MODULES, capacity.FUNCTION_ZYGOTE_MIB)
        slots = Slots(ledger, declared.zygote_mib, small)
        self._functions = declared.functions
        self.machine = NodeMachine(
            NodeID(me.id), me.addr, me.incarnation, ledger, slots, timing, declared.labels
        )
        self.recording = NodeHistory(rpc.history, self.machine)
        self.watcher = Watcher()
        self.zygotes = ZygotePool(
            folder, self.watcher, base_environment(), self._zygote_ready, self._zygote_died
        )
        self.models = ModelCache(folder.models, declared.model_cache_bytes, self._models_changed)
        backend = ProcessBackend(folder, self.zygotes, me.addr.rpartition(":")[0], key_file)
        self.instances = Instances(
            self.machine, folder, backend, self.watcher, self.models, self.now, self.carry_out
        )
        self.telling = Telling(self.machine, rpc, membership, self.now, self.carry_out)
        self.ready_socket = ReadySocket(self._poked)
        self._look_soon = False
        self.ahead = Ahead(self.instances, declared.resources, self._modules_known)
        rpc.handle(m.Start, self.start)
        rpc.handle(m.Commit, self.commit)
        rpc.handle(m.Stop, self.stop)
        rpc.handle(m.Probe, self.probe)
        rpc.handle(m.Recall, self.recall)
        rpc.handle(m.Sleep, self.refuse_sleep)
        rpc.handle(m.Wake, self.refuse_sleep)
        rpc.handle(m.Locate, self.locate)
        rpc.handle(m.Describe, self.describe)
        membership.on_view(self.view_changed)
        membership.report_load(self.load)

    def now(self) -> float:
        """Unix seconds that never step: the clock of deadlines and of marks."""
        return self._epoch_s + asyncio.get_running_loop().time()

    # --- handlers

    def start(self, message: m.Start, caller: Caller) -> m.StartReply:
        order = order_of(message)
        if message.waiting:
            self.rpc.warm(message.waiting)  # told as soon as it is ready: no hello then
        verdict, out = self.machine.start(order, self.now())
        self.recording.start(order, verdict)
        self.carry_out(out)
        return reply_of(verdict, self.machine, start=True)

    def commit(self, message: m.Commit, caller: Caller) -> m.StartReply:
        verdict, out = self.machine.commit(
            message.instances, message.epoch, self.now(), cancel=message.cancel, reason=message.reason
        )
        self.recording.commit(message.instances, message.epoch, message.cancel, verdict)
        return self._verdict(verdict, out)

    def stop(self, message: m.Stop, caller: Caller) -> m.Ack:
        verdict, out = self.machine.stop(
            message.instance, message.epoch, message.drain_s, message.reason, self.now()
        )
        self.recording.stop(message.instance, message.epoch, message.reason, verdict)
        if verdict.stale:
            log.warning("stop of %s by %s refused: %s", message.instance, caller.name, verdict.reason)
        self.carry_out(out)
        return m.Ack(self.membership.view.epoch)

    def probe(self, message: m.Probe, caller: Caller) -> m.Update:
        return m.Update(self.machine.status())

    def recall(self, message: m.Recall, caller: Caller) -> m.RecallReply:
        found, epoch = self.machine.recall(message.epoch, message.home_addr, message.revisions, self.now())
        self.recording.recall(message.epoch, message.revisions, epoch)
        return m.RecallReply(instances=found, epoch=epoch)

    def refuse_sleep(self, message: m.Sleep | m.Wake, caller: Caller) -> m.StartReply:
        return m.StartReply(False, SLEEP_REFUSED, self.machine.status())

    def locate(self, message: m.Locate, caller: Caller) -> m.Located:
        view = self.membership.view
        home = rendezvous.owner(message.home_key, [FunctionID(d.id) for d in view.of("dispatch")])
        return m.Located(home or FunctionID(""), self.membership.addr_of(home) if home else "", view.epoch)

    def describe(self, message: m.Describe, caller: Caller) -> m.Description:
        body = describe(self.machine, self.instances, message.what, message.key)
        if message.what == "status":
            body["connections"] = self.rpc.connections()
        return m.Description(msgspec.json.encode(body))

    def view_changed(self, view: View) -> None:
        dispatch = {FunctionID(d.id): d.addr for d in view.of("dispatch")}
        self.machine.homes.controller = self.membership.controller
        self.machine.view(view.epoch, dispatch, self.now())

    def load(self) -> m.Load:
        return m.Load(
            requests=self.machine.admitted_total,
            instances=self.machine.lives.running,
            free=self.machine.slots.free if self.machine.accepting else Resources(),
        )

    # --- carrying out

    def carry_out(self, instructions: Iterable[facts.Instruction]) -> None:
        for i in instructions:
            self.recording.carried(i)
            match i:
                case facts.Tell():
                    self.telling.tell(i)
                case facts.Report():
                    self.telling.report()
                case facts.Fetch():
                    self.instances.fetch(i)
                case facts.Launch():
                    self.instances.launch(i)
                case facts.Signal():
                    self.instances.signal(i)
                case facts.Ended():
                    self.instances.ended(i)
                case facts.StartZygote():
                    self.zygotes.start(i.module)
                case facts.EndZygote():
                    self.zygotes.end(i.module)

    def _verdict(self, verdict: facts.Verdict, out: list[facts.Instruction]) -> m.StartReply:
        self.carry_out(out)
        return reply_of(verdict, self.machine)

    def _modules_known(self, modules: frozenset[str]) -> None:
        self.carry_out(self.machine.wants(modules | self._functions, self.now()))

    def _zygote_ready(self, module: str) -> None:
        self.carry_out(self.machine.zygote_ready(module))

    def _zygote_died(self, module: str) -> None:
        self.carry_out(self.machine.zygote_died(module, self.now()))

    def _models_changed(self) -> None:
        self.carry_out(self.machine.models_changed(self.models.held()))

    def _poked(self) -> None:
        """Some instance has said something; many lines at once are one look."""
        if not self._look_soon:
            self._look_soon = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._look_soon = False
        self.instances.look()

    # --- life

    async def open(self) -> None:
        """Finds what an earlier agent has left, and listens to instances."""
        self._recover()
        self.recording.opened()
        self._modules_known(frozenset())
        await self.rpc.listen_unix(str(self.folder.agent_socket))
        await self.ready_socket.listen(self.folder.ready_socket)

    def _recover(self) -> None:
        now = self.now()
        for module in self.zygotes.adopt():
            self.machine.slots.adopt(module)
        known = []
        for found in recovery.find(self.folder):
            order = found.spec.order
            if found.process is None:
                assert found.end is not None
                log.warning("%s has ended meanwhile: %s", order.instance, found.end.reason)
                self.machine.lives.found_dead(order, found.end, found.spec.generation, now)
                write_json(self.folder.instance(order.instance) / "ended.json", {"at": now})
                continue
            known.append(found.process.pid)
            held = Held(order.revision.needs, found.spec.devices)
            out = self.machine.lives.adopt(
                order, found.state, found.addr, found.spec.generation, held, found.end, now
            )
            self.instances.adopt(order.instance, found.spec, found.process)
            self.carry_out(out)
        self.instances.look()
        strays = recovery.kill_strays(self.folder, known, self.zygotes.pids)
        if known or strays:
            log.info("%d instances found again, processes nobody knew and killed: %s", len(known), strays)
        self._models_changed()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.telling.run())
            group.create_task(self._every(TICK_S, lambda: self.carry_out(self.machine.tick(self.now()))))
            group.create_task(self._every(POLL_S, self.instances.look))
            group.create_task(self._every(pulse.LOOK_S, self.instances.feel))
            group.create_task(self._every(LOGS_PERIOD_S, self.instances.bound_logs))

    def close(self) -> None:
        """Lets go of everything, and ends nothing."""
        self.machine.accepting = False
        self.ready_socket.close()
        self.instances.close()
        self.zygotes.close()
        self.watcher.close()
        self.models.close()
        self.ahead.close()

    async def _every(self, period_s: float, work: Callable[[], None]) -> None:
        while True:
            try:
                work()
            except Exception:
                log.exception("%s failed", work)
            await asyncio.sleep(period_s)


def main(args: argparse.Namespace) -> int:
    process = Process.from_args(args, kind="node")
    declared = capacity.declared(args)

    async def run(rpc: Rpc, membership: Membership) -> None:
        folder = NodeFolder(process.data / "nodes" / process.id)
        agent = NodeAgent(rpc, membership, folder, process.data / "cluster.key", declared)
        await agent.open()
        await membership.start()
        agent.ahead.watch(open_store(process, rpc))
        process.ready()
        try:
            await agent.run()
        finally:
            agent.close()

    return process.run(run)
