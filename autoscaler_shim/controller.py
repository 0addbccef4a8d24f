"""The top-level controller's shell: the view, its epochs, and (in the embedded default) the state store.

It knows nothing of revisions, and nothing on a request's path waits for it. The view is stored, so that a controller
that dies comes back above every epoch it has ever published. How many functions there are is elastic.py's.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

import msgspec

from autoscaler_shim import elastic
from autoscaler_shim.elastic import Elastic, Launch
from kserve_ext.core.control.facts import Kept
from kserve_ext.core.control.machine import ElasticMachine
from kserve_ext.core.facts import View
from kserve_ext.core.ids import FunctionID
from kserve_ext.core.membership import MembershipMachine, Push
from kserve_ext.rpc import Caller, Rpc, RpcError
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.process import Process
from kserve_ext.store.journal import Journal
from kserve_ext.store.server import StoreServer
from kserve_ext.wire.frames import ErrorCode
from kserve_ext.wire.messages import (
    Ack,
    Describe,
    Description,
    Join,
    Leave,
    Load,
    Message,
    PublishView,
    Report,
    ReportReply,
)

log = logging.getLogger(__name__)

VIEW_KEY = "view"
TICK_S = 0.1
SYNC_S = 1.0
PUSH_TIMEOUT_S = 1.0

add_args = elastic.add_args


class Controller:
    """The rpc handlers of membership. `scaled` makes the elastic half from what an earlier controller has kept."""

    def __init__(
        self, rpc: Rpc, store: StoreServer, scaled: Callable[[Kept, float], ElasticMachine], launch: Launch
    ) -> None:
        self.rpc = rpc
        self.store = store
        self.journal = journal = store.journal
        self.loop = asyncio.get_running_loop()
        found = {
            key: value for key in (VIEW_KEY, elastic.KEPT_KEY) for _, value, _ in journal.memory.scan(key)
        }
        stored = msgspec.msgpack.decode(found[VIEW_KEY], type=View) if VIEW_KEY in found else View()
        self.machine = MembershipMachine(stored, self.loop.time())
        machine = scaled(elastic.stored(found.get(elastic.KEPT_KEY)), self.loop.time())
        self.elastic = Elastic(rpc, self.machine, machine, launch, self._push, self._remember)
        self.loads: dict[str, Load] = {}
        self._stored_epoch = -1
        rpc.epoch = lambda: self.machine.epoch
        rpc.handle(Join, self.join)
        rpc.handle(Report, self.report)
        rpc.handle(Leave, self.leave)
        rpc.handle(Describe, self.describe)
        rpc.on_lost(self._lost)

    async def join(self, message: Join, caller: Caller) -> PublishView:
        member = message.member
        before = self.machine.epoch
        pushes = self.machine.join(member, message.epoch, id(caller.connection), self.loop.time())
        if self.machine.epoch != before:
            log.info("%s joined at %s: epoch %d", member.id, member.addr, self.machine.epoch)
        self._push([p for p in pushes if p.member.id != member.id])
        self.elastic.step()
        await asyncio.sleep(self.machine.gathering(self.loop.time()))
        self.machine.acked(member.id, self.machine.epoch)  # its reply carries the view
        self.elastic.step()
        return PublishView(self.machine.view)

    def report(self, message: Report, caller: Caller) -> ReportReply:
        self.loads[message.id] = message.load
        known = self.machine.report(
            message.id, message.incarnation, message.epoch, id(caller.connection), self.loop.time()
        )
        return ReportReply(self.machine.epoch, known, self.elastic.reported(message) if known else 0.0)

    def leave(self, message: Leave, caller: Caller) -> Ack:
        by = f"{message.by}: " if message.by else ""
        self._push(
            self.machine.leave(
                message.id, message.incarnation, f"{by}{message.reason or 'left'}", self.loop.time()
            )
        )
        return Ack(self.machine.epoch)

    def _lost(self, who: Caller) -> None:
        self.machine.lost(FunctionID(who.name), id(who.connection), self.loop.time())

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tick())
            tasks.create_task(self._sync())

    async def _tick(self) -> None:
        while True:
            self._push(self.machine.tick(self.loop.time()))
            self.elastic.step()
            await asyncio.sleep(TICK_S)

    async def _sync(self) -> None:
        """Forces the journal to the disk in another thread: a slow disk must not make us deaf."""
        while True:
            await asyncio.sleep(SYNC_S)
            force = self.journal.syncing()
            if force is None:
                continue
            try:
                await asyncio.to_thread(force)
            except OSError as error:
                log.error("the journal is not safely on the disk: %s", error)

    def describe(self, message: Describe, caller: Caller) -> Description:
        machine = self.machine
        body = {
            "id": self.rpc.name,
            "kind": "controller",
            "epoch": machine.epoch,
            "consistent": machine.consistent(),
            "members": [m._asdict() | {"info": dict(m.info)} for m in machine.view.members],
            "loads": {name: msgspec.structs.asdict(load) for name, load in self.loads.items()},
            "removed": [r._asdict() for r in machine.removed],
            "scaled": self.elastic.describe(),
            "store": {"revision": self.journal.memory.revision},
        }
        return Description(msgspec.json.encode(body))

    # --- inside

    def _push(self, pushes: Iterable[Push]) -> None:
        self._store()
        now = self.loop.time()
        encoded: dict[int, PublishView] = {}  # once for all members
        for push in pushes:
            self.machine.pushed(push.member.id, now)
            message = encoded.get(push.view.epoch)
            if message is None:
                raw = msgspec.Raw(msgspec.msgpack.encode(push.view))
                message = encoded[push.view.epoch] = PublishView(cast(View, raw))
            self.rpc.call_soon(push.member.addr, message, self._acked(push), timeout_s=PUSH_TIMEOUT_S)

    def _acked(self, push: Push) -> Callable[[Message | RpcError], None]:
        def done(reply: Message | RpcError) -> None:
            if isinstance(reply, Ack):
                self.machine.acked(push.member.id, reply.epoch)
                self.elastic.step()
            elif isinstance(reply, RpcError) and reply.code == ErrorCode.UNAVAILABLE and not reply.sent:
                self.machine.unreachable(push.member.id, push.member.incarnation, self.loop.time())

        return done

    def _remember(self, kept: bytes) -> None:
        try:
            self.store.write([(elastic.KEPT_KEY, kept)])
        except OSError as error:  # nodes know what runs, and tell it to the next controller
            log.error("which functions were started is not stored: %s", error)

    def _store(self) -> None:
        machine = self.machine
        if machine.epoch == self._stored_epoch:
            return
        self._stored_epoch = machine.epoch
        try:
            self.store.write([(VIEW_KEY, msgspec.msgpack.encode(machine.view))])
        except OSError as error:  # members know the epoch, and tell it to the next controller
            log.error("epoch %d is not stored: %s", machine.epoch, error)
        members = {m.id for m in machine.view.members}
        self.rpc.history.say("published", epoch=machine.epoch, members=sorted(members))
        self.loads = {name: load for name, load in self.loads.items() if name in members}


def main(args: argparse.Namespace) -> int:
    process = Process.from_args(args, kind="controller")

    async def run(rpc: Rpc, membership: Membership) -> None:
        journal = Journal(process.data / "store")
        if journal.cut_bytes:
            log.warning("the journal's last record was torn: cut off %d bytes", journal.cut_bytes)
        launch = elastic.launch_of(args, process)
        scaled = partial(elastic.machine_of, args)
        controller = Controller(rpc, StoreServer(rpc, journal), scaled, launch)
        process.ready()
        try:
            await controller.run()
        finally:
            await rpc.close()  # nothing is written any more
            journal.close()

    return process.run(run)
