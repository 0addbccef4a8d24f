"""Real Dispatch functions, rpc and HTTP over loopback in one process, with a controller, a Schedule function and
nodes that are just handlers: what is tested is the Dispatch functions, and that they speak the protocol.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from activator_replacement.__main__ import DispatchFunction
from kserve_ext.core.facts import Instance, InstanceState, Member, Revision, View
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.rpc.membership import Membership
from kserve_ext.store.journal import Journal
from kserve_ext.store.remote import RemoteStore
from kserve_ext.store.server import StoreServer
from kserve_ext.wire import messages as m

KEY = b"k" * 32
NODE = NodeID("node-0")


class Served:
    """One instance: an HTTP server that takes a moment for each request and counts those under way."""

    def __init__(self, cluster: Cluster, instance: InstanceID, revision: Revision, serial: int) -> None:
        self.cluster, self.id, self.revision, self.serial = cluster, instance, revision, serial
        self.state: InstanceState = "starting"
        self.addr = ""
        self.server: asyncio.Server | None = None
        self.writers: set[asyncio.StreamWriter] = set()
        self.in_flight = self.peak = self.answered = 0
        #: somebody who isn't known here has all its places; so often that was said
        self.full, self.refused = False, 0

    @property
    def fact(self) -> Instance:
        return Instance(self.id, self.revision.key, NODE, self.state, self.addr)

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.addr = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        self.state = "ready"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                if self.full:
                    self.refused += 1
                    writer.write(b"HTTP/1.1 503 Full\r\ncontent-length: 0\r\nx-galaxy-full: 1\r\n\r\n")
                    continue
                self.in_flight += 1
                self.peak = max(self.peak, self.in_flight)
                try:
                    await self._may_answer(reader)
                    await asyncio.sleep(0.002)
                finally:
                    self.in_flight -= 1
                if writer.is_closing():
                    return
                self.answered += 1
                body = json.dumps({"pid": self.serial, "peak": self.peak}).encode()
                head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                writer.write(head % len(body) + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    async def _may_answer(self, reader: asyncio.StreamReader) -> None:
        """Its work ends with its client, as an engine's does."""
        if self.cluster.answering.is_set():
            return
        may, gone = (asyncio.ensure_future(x) for x in (self.cluster.answering.wait(), reader.read(1)))
        try:
            await asyncio.wait({may, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not gone.result():
                raise ConnectionResetError("the client has gone")
        finally:
            may.cancel()
            gone.cancel()

    def end(self, state: InstanceState) -> None:
        self.state = state
        if self.server is not None:
            self.server.close()
        for writer in list(self.writers):
            writer.transport.abort()


class Dispatch:
    """One Dispatch function as its process would be."""

    def __init__(self, cluster: Cluster, name: str, incarnation: int) -> None:
        self.cluster, self.name, self.incarnation = cluster, name, incarnation
        self.rpc = Rpc(name, KEY)
        self.http = ""

    async def start(self) -> None:
        addr = await self.rpc.listen("127.0.0.1")
        member = Member(FunctionID(self.name), "dispatch", addr, self.incarnation)
        membership = Membership(self.rpc, member, self.cluster.addr)
        self.store = RemoteStore(self.rpc, self.cluster.addr)
        self.function = DispatchFunction(self.rpc, membership, self.store)
        _, own, _ = await self.function.server.start([], ("127.0.0.1", 0))
        self.http = f"http://{own[0]}:{own[1]}/"
        self.membership = membership
        await membership.start()
        self.task = asyncio.create_task(self.function.run())

    async def die(self) -> None:
        """As kill -9 does: every connection ends, nothing is said to anybody."""
        self.task.cancel()
        if self.membership._task is not None:
            self.membership._task.cancel()
        await self.function.server.close()
        await self.store.close()
        await self.rpc.close()


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.rpc = Rpc("controller-0", KEY)
        self.store = StoreServer(self.rpc, Journal(folder / "store"))
        self.members: dict[str, Member] = {}
        self.epoch = 0
        self.dispatch: dict[str, Dispatch] = {}
        self.instances: dict[InstanceID, Served] = {}
        self.most = self.serial = 0
        self.revisions: dict[RevisionKey, Revision] = {}
        #: instances may become ready, and answer
        self.starting, self.answering = asyncio.Event(), asyncio.Event()
        self.starting.set()
        self.answering.set()
        self.refuse = ""
        self.fail = ""
        self.homes: dict[RevisionKey, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        for message, handler in (
            (m.Join, self.join),
            (m.Report, lambda message, caller: m.ReportReply(self.epoch, True)),
            (m.Leave, lambda message, caller: m.Ack(self.epoch)),
            (m.Schedule, self.schedule),
            (m.Stop, self.stop),
            (m.Recall, self.recall),
        ):
            self.rpc.handle(message, handler)  # type: ignore[arg-type]

    async def start(self, names: list[str]) -> None:
        self.addr = await self.rpc.listen("127.0.0.1")
        for kind, name in (("schedule", "schedule-0"), ("node", NODE)):
            self.members[name] = Member(FunctionID(name), kind, self.addr, 1)  # type: ignore[arg-type]
        for k, name in enumerate(names):
            self.dispatch[name] = Dispatch(self, name, k + 1)
            await self.dispatch[name].start()

    def apply(self, revision: Revision, host: str) -> None:
        self.revisions[revision.key] = revision
        self.store.write(
            [
                (f"revisions/{revision.key}", msgspec.msgpack.encode(revision)),
                (f"routes/{host}", msgspec.msgpack.encode(((revision.key, 100),))),
            ]
        )

    def delete(self, key: RevisionKey) -> None:
        self.store.write([(f"revisions/{key}", None)])

    def home(self, key: RevisionKey) -> str:
        """The one that acts as the home of a revision, by its own account."""
        return next(
            n
            for n, d in self.dispatch.items()
            if any(key in h.revisions for h in d.function.homes.homes.values())
        )

    async def kill(self, name: str) -> None:
        await self.dispatch.pop(name).die()
        del self.members[name]
        self.publish()

    async def close(self) -> None:
        for dispatch in self.dispatch.values():
            await dispatch.die()
        for served in self.instances.values():
            served.end("gone")
        for task in self._tasks:
            task.cancel()
        await self.rpc.close()

    # --- controller

    def join(self, message: m.Join, caller: Caller) -> m.PublishView:
        self.members[message.member.id] = message.member
        self.publish()
        return m.PublishView(self.view)

    @property
    def view(self) -> View:
        return View(self.epoch, tuple(self.members[k] for k in sorted(self.members)))

    def publish(self) -> None:
        self.epoch += 1
        for member in self.members.values():
            if member.kind == "dispatch":
                self.rpc.call_soon(member.addr, m.PublishView(self.view), lambda reply: None, 1.0)

    # --- Schedule function and node

    def schedule(self, message: m.Schedule, caller: Caller) -> m.Placements:
        ids = [(item.revision, i) for item in message.items for i in item.ids]
        if self.refuse:
            return m.Placements((), tuple(m.Refused(i, self.refuse) for _, i in ids), epoch=self.epoch)
        for revision, instance in ids:
            self.serial += 1
            served = self.instances[instance] = Served(self, instance, revision, self.serial)
            self.homes[revision.key] = message.home_addr
            self._spawn(self._bring_up(served, message.waiting))
        self.most = max(self.most, len(self.instances))
        return m.Placements(tuple(m.Placed(i, NODE, self.addr) for _, i in ids), epoch=self.epoch)

    async def _bring_up(self, served: Served, waiting: tuple[str, ...]) -> None:
        await self.starting.wait()
        if self.fail:
            self.lose(served, permanent=True)
            return
        await served.start()
        self.tell(served.fact, waiting)

    def tell(self, fact: Instance, also: tuple[str, ...] = ()) -> None:
        message = m.ModInstance(fact.revision, NODE, 1, (fact,), self.epoch)
        for addr in {self.homes[fact.revision], *also}:
            self.rpc.call_soon(addr, message, lambda reply: None, 1.0)

    def lose(self, served: Served, *, permanent: bool = False) -> None:
        """Its process has ended by itself."""
        served.end("failed")
        del self.instances[served.id]
        reason = self.fail or "the process was killed by SIGKILL"
        self.tell(served.fact._replace(reason=reason, permanent=permanent))

    def stop(self, message: m.Stop, caller: Caller) -> m.Ack:
        served = self.instances.pop(message.instance, None)
        if served is not None:
            assert not served.in_flight, "an instance was stopped that somebody still used"
            served.end("gone")
            self.tell(served.fact)
        return m.Ack(self.epoch)

    def recall(self, message: m.Recall, caller: Caller) -> m.RecallReply:
        for key in message.revisions:
            self.homes[key] = message.home_addr
        facts = tuple(s.fact for s in self.instances.values() if s.revision.key in message.revisions)
        return m.RecallReply(facts, epoch=self.epoch)

    def _spawn(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def until(check: Callable[[], bool], what: str, timeout_s: float = 100.0) -> None:
    """Waits for a condition; the time limit only ends a hang."""
    due = asyncio.get_running_loop().time() + timeout_s
    while not check():
        assert asyncio.get_running_loop().time() < due, f"did not come: {what}"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def cluster(folder: Path, *names: str) -> AsyncIterator[Cluster]:
    up = Cluster(folder)
    await up.start(list(names))
    try:
        yield up
    finally:
        await up.close()
