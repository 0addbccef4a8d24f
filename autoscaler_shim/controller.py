"""The top-level controller's shell: the view, its epochs, and (in the embedded default) the state store.

It knows nothing of revisions, and nothing on a request's path waits for it. The view is stored (keeping.py), so that
a controller that dies comes back above every epoch it has ever published. How many functions there are is
elastic.py's, which of several controllers leads is candidacy.py's.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import cast

import msgspec

from autoscaler_shim import elastic, keeping
from autoscaler_shim.candidacy import Candidacy, decode
from autoscaler_shim.elastic import Elastic, Launch
from autoscaler_shim.keeping import KEPT_KEY, VIEW_KEY, Keeper
from kserve_ext.core.control.facts import Kept
from kserve_ext.core.control.machine import ElasticMachine
from kserve_ext.core.facts import View
from kserve_ext.core.ids import FunctionID
from kserve_ext.core.membership import MembershipMachine, Push
from kserve_ext.rpc import Caller, Rpc, RpcError
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.process import Process
from kserve_ext.store.journal import Journal
from kserve_ext.store.opening import location, open_store
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

TICK_S = 0.1
SYNC_S = 1.0
PUSH_TIMEOUT_S = 1.0
FLUSH_S = 1.0

add_args = elastic.add_args


class Controller:
    """The rpc handlers of membership, from what an earlier controller has kept. `scaled` makes the elastic half."""

    def __init__(
        self,
        rpc: Rpc,
        addr: str,
        keeper: Keeper,
        kept: Mapping[str, bytes],
        scaled: Callable[[Kept, float], ElasticMachine],
        launch: Launch,
    ) -> None:
        self.rpc = rpc
        self.addr = addr
        self.keeper = keeper
        keeper.on_written = self._written
        self.loop = asyncio.get_running_loop()
        self.machine = MembershipMachine(decode(kept.get(VIEW_KEY)), self.loop.time(), lost=keeper.lost)
        machine = scaled(elastic.stored(kept.get(KEPT_KEY)), self.loop.time())
        self.elastic = Elastic(
            rpc, addr, self.machine, machine, launch, self._push, self._remember, lambda: keeper.busy
        )
        self.loads: dict[str, Load] = {}
        self._put_epoch = self._said_epoch = -1
        rpc.epoch = lambda: self.machine.epoch
        rpc.handle(Join, self.join)
        rpc.handle(Report, self.report)
        rpc.handle(Leave, self.leave)
        rpc.handle(Describe, self.describe)
        self._hears_no_more = rpc.on_lost(self._lost)

    async def join(self, message: Join, caller: Caller) -> PublishView:
        member = message.member
        before = self.machine.epoch
        pushes = self.machine.join(member, message.epoch, id(caller.connection), self.loop.time())
        if self.machine.epoch != before:
            log.info("%s joined at %s: epoch %d", member.id, member.addr, self.machine.epoch)
        self._push([p for p in pushes if p.member.id != member.id])
        self.elastic.step()
        await asyncio.sleep(self.machine.gathering(self.loop.time()))
        self._store()
        await self.keeper.written()
        self.machine.acked(member.id, self.machine.epoch)  # its reply carries the view
        view = self.machine.view
        self.elastic.step()
        return PublishView(view, self.addr)

    def report(self, message: Report, caller: Caller) -> ReportReply:
        known = self.machine.report(
            message.id, message.incarnation, message.epoch, id(caller.connection), self.loop.time()
        )
        if known:
            self.loads[message.id] = message.load
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
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._tick())
                tasks.create_task(self.elastic.run())
        finally:
            self._hears_no_more()

    async def _tick(self) -> None:
        while True:
            self._push(self.machine.tick(self.loop.time()))
            self.elastic.step()
            await asyncio.sleep(TICK_S)

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
            "metrics": self.elastic.metrics,
        }
        return Description(msgspec.json.encode(body))

    # --- inside

    def _push(self, pushes: Iterable[Push]) -> None:
        self._store()
        if self.keeper.busy or self.machine.gathering(self.loop.time()):
            return  # they follow as soon as the view is written, and whole
        if self.machine.epoch != self._said_epoch:
            self._said_epoch = self.machine.epoch
            members = sorted(m.id for m in self.machine.view.members)
            self.rpc.history.say("published", epoch=self._said_epoch, members=members)
        now = self.loop.time()
        encoded: dict[int, PublishView] = {}  # once for all members
        for push in pushes:
            self.machine.pushed(push.member.id, now)
            message = encoded.get(push.view.epoch)
            if message is None:
                raw = msgspec.Raw(msgspec.msgpack.encode(push.view))
                message = encoded[push.view.epoch] = PublishView(cast(View, raw), self.addr)
            self.rpc.call_soon(push.member.addr, message, self._acked(push), timeout_s=PUSH_TIMEOUT_S)

    def _written(self) -> None:
        self.elastic.written()
        self._push(self.machine.unheard(self.loop.time()))

    def _acked(self, push: Push) -> Callable[[Message | RpcError], None]:
        def done(reply: Message | RpcError) -> None:
            if isinstance(reply, Ack):
                self.machine.acked(push.member.id, reply.epoch)
                if self.machine.consistent():
                    self.elastic.step()
            elif isinstance(reply, RpcError) and reply.code == ErrorCode.UNAVAILABLE and not reply.sent:
                self.machine.unreachable(push.member.id, push.member.incarnation, self.loop.time())

        return done

    def _remember(self, kept: bytes) -> None:
        self.keeper.put(KEPT_KEY, kept)

    def _store(self) -> None:
        machine = self.machine
        if machine.epoch == self._put_epoch:
            return
        self._put_epoch = machine.epoch
        self.keeper.put(VIEW_KEY, msgspec.msgpack.encode(machine.view))
        members = {m.id for m in machine.view.members}
        self.loads = {name: load for name, load in self.loads.items() if name in members}


def main(args: argparse.Namespace) -> int:
    process = Process.from_args(args, kind="controller")
    launch, scaled = elastic.launch_of(args, process), partial(elastic.machine_of, args)

    async def run(rpc: Rpc, membership: Membership) -> None:
        async def lead(keeper: Keeper, kept: Mapping[str, bytes]) -> None:
            await Controller(rpc, process.addr, keeper, kept, scaled, launch).run()

        if location(process.data, process.key()) is None:
            await _hosting(process, rpc, lead)
            return
        store = open_store(process, rpc)
        try:
            if len(process.controllers) > 1:
                process.ready()
                await Candidacy(rpc, process.addr, store, lead).run()
            else:
                kept = await keeping.read_if_there(store)
                process.ready()
                await lead(keeping.behind(store), kept)
        finally:
            await store.flush(FLUSH_S)
            await store.close()

    return process.run(run)


async def _hosting(
    process: Process, rpc: Rpc, lead: Callable[[Keeper, Mapping[str, bytes]], Awaitable[None]]
) -> None:
    """The embedded default: the store is here."""
    journal = Journal(process.data / "store")
    if journal.cut_bytes:
        log.warning("the journal's last record was torn: cut off %d bytes", journal.cut_bytes)
    server = StoreServer(rpc, journal)
    process.ready()
    try:
        kept = {key: value for key in (VIEW_KEY, KEPT_KEY) for _, value, _ in journal.memory.scan(key)}
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_sync(journal))
            tasks.create_task(_awaited(lead(keeping.in_journal(server), kept)))
    finally:
        await rpc.close()  # nothing is written any more
        journal.close()


async def _awaited(leading: Awaitable[None]) -> None:
    await leading


async def _sync(journal: Journal) -> None:
    """Forces the journal to the disk in another thread: a slow disk must not make us deaf."""
    while True:
        await asyncio.sleep(SYNC_S)
        force = journal.syncing()
        if force is None:
            continue
        try:
            await asyncio.to_thread(force)
        except OSError as error:
            log.error("the journal is not safely on the disk: %s", error)
