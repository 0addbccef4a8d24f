"""Everything a node agent talks to, in the test's own process: controller, ClusterMgr function, home and store.

The agent under test is a real process (or a NodeAgent in this loop); its home here remembers what it is told,
and tests wait for facts, not for time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from autoscaler_shim.node.cleanup import stop_all
from kserve_ext.core.facts import (
    Command,
    Instance,
    Member,
    Model,
    NodeStatus,
    Resources,
    Revision,
    Scale,
    View,
)
from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey
from kserve_ext.rpc import Caller, Rpc, RpcError
from kserve_ext.wire import messages as m

KEY = b"n" * 32
FAKE = "tests.support.fake_runtime"
PATIENCE_S = 100.0
T = TypeVar("T")


def revision(
    *argv: str,
    name: str = "a",
    zygote: bool = True,
    model: Path | None = None,
    needs: Resources = Resources(cpu_milli=500, memory_mib=256),
    start_timeout_s: float = 60.0,
    drain_s: float = 5.0,
    command: tuple[str, ...] = ("python", "-m", FAKE, "--port=8080", "--model=/mnt/models"),
    env: tuple[tuple[str, str], ...] = (),
    ready_path: str = "",
) -> Revision:
    return Revision(
        key=RevisionKey(f"default/{name}"),
        service=f"default/{name}",
        generation=1,
        command=Command(
            (*command, *argv),
            env=env,
            zygote=FAKE if zygote else "",
            drain_s=drain_s,
            start_timeout_s=start_timeout_s,
            ready_path=ready_path,
        ),
        model=Model(f"file://{model}", str(model)) if model else Model(),
        needs=needs,
        scale=Scale(),
    )


class World:
    """Controller, ClusterMgr function, home and store in one rpc server."""

    def __init__(self, data: Path, patience_s: float = PATIENCE_S) -> None:
        self.data = data
        self.patience_s = patience_s
        self.key_file = data / "cluster.key"
        self.key_file.write_bytes(KEY)
        self.rpc = Rpc("world", KEY, epoch=lambda: self.view.epoch)
        self.view = View()
        self.node = ""
        self.status: NodeStatus | None = None
        #: all of them, the last one included
        self.statuses: list[NodeStatus] = []
        self.told: dict[InstanceID, Instance] = {}
        self.full: list[m.ModInstance] = []
        self.states: list[tuple[InstanceID, str]] = []
        self.unwanted: set[InstanceID] = set()
        self.is_home = True
        self.revisions: dict[str, bytes] = {}
        self.agents: list[subprocess.Popen[bytes]] = []
        self._changed = asyncio.Event()
        for message, handler in (
            (m.Join, self._join),
            (m.Report, lambda r, c: m.ReportReply(self.view.epoch, True)),
            (m.Leave, lambda r, c: m.Ack()),
            (m.Update, self._update),
            (m.ModInstance, self._mod_instance),
            (m.StoreScan, self._scan),
            (m.StoreWatch, self._watch),
        ):
            self.rpc.handle(message, handler)  # type: ignore[arg-type]

    async def open(self) -> None:
        self.addr = await self.rpc.listen("127.0.0.1")
        members = [Member(FunctionID(i), k, self.addr, 1) for i, k in self._parts()]
        self.view = View(1, tuple(members))

    @staticmethod
    def _parts() -> Iterator[tuple[str, Any]]:
        yield "cluster-mgr-0", "cluster_mgr"
        yield "dispatch-0", "dispatch"

    # --- the agent

    def start_agent(self, *options: str, node: str = "node-0", env: dict[str, str] | None = None) -> None:
        capacity = ("--cpu", "4", "--memory", "8Gi", "--zygote-memory", "64Mi")
        command = [sys.executable, "-m", "autoscaler_shim", "node", "--id", node, "--data", str(self.data)]
        with (self.data / f"{node}.log").open("ab") as output:
            agent = subprocess.Popen(
                [*command, "--controller", self.addr, *capacity, *options],
                stdout=output,
                stderr=output,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self.agents.append(agent)

    async def up(self, *options: str, **more: Any) -> None:
        """Starts an agent and waits until it has been heard."""
        self.status = None
        self.start_agent(*options, **more)
        await self.until(lambda: self.status)

    def kill_agent(self) -> None:
        agent = self.agents.pop()
        agent.kill()
        agent.wait()

    async def close(self) -> None:
        for agent in self.agents:
            agent.kill()
            agent.wait()
        await self.rpc.close()
        for node in (self.data / "nodes").glob("*"):
            await asyncio.to_thread(stop_all, node, 0.2)

    # --- calls

    async def start(self, instance: str, of: Revision, *, epoch: int = 0, **more: Any) -> m.StartReply:
        epoch = epoch or self.view.epoch
        message = m.Start(InstanceID(instance), of, epoch, FunctionID("dispatch-0"), self.addr, **more)
        reply: m.StartReply = await self.rpc.call(self.node, message)
        return reply

    async def stop(self, instance: str, *, epoch: int = 0, drain_s: float = 5.0) -> m.Ack:
        epoch = epoch or self.view.epoch
        message = m.Stop(InstanceID(instance), epoch, FunctionID("dispatch-0"), drain_s, "test")
        reply: m.Ack = await self.rpc.call(self.node, message)
        return reply

    async def describe(self, what: str, key: str = "") -> dict[str, Any]:
        reply: m.Description = await self.rpc.call(self.node, m.Describe(what, key))
        body: dict[str, Any] = json.loads(reply.body)
        return body

    # --- waiting

    async def until(self, fact: Callable[[], T]) -> T:
        """The fact, once it is true; it is looked at whenever something was heard."""
        try:
            async with asyncio.timeout(self.patience_s):
                while True:
                    self._changed.clear()
                    if found := fact():
                        return found
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.wait(), 0.05)
        except TimeoutError:
            raise AssertionError(f"never came true; told {self.told}\n{self.log()}") from None

    async def state(self, instance: str, *states: str) -> Instance:
        def reached() -> Instance | None:
            told = self.told.get(InstanceID(instance))
            return told if told is not None and told.state in states else None

        found = await self.until(reached)
        assert found is not None
        return found

    async def slots(self, *wanted: tuple[tuple[str, int], ...]) -> None:
        """From now on its statuses have these slots, in this order; none is missed for being short."""
        at = len(self.statuses)
        for slots in wanted:

            def seen(slots: tuple[tuple[str, int], ...] = slots, since: int = at) -> int:
                told = range(since, len(self.statuses))
                return next((k + 1 for k in told if self.statuses[k].slots == slots), 0)

            at = await self.until(seen)

    def log(self) -> str:
        return "\n".join(file.read_text() for file in self.data.glob("node-*.log"))[-4000:]

    # --- parts

    def _join(self, message: m.Join, caller: Caller) -> m.PublishView:
        others = tuple(x for x in self.view.members if x.id != message.member.id)
        self.view = View(self.view.epoch + 1, (*others, message.member))
        return m.PublishView(self.view)

    def _update(self, message: m.Update, caller: Caller) -> m.Ack:
        self.status, self.node = message.status, message.status.addr
        self.statuses.append(message.status)
        self._changed.set()
        return m.Ack()

    def _mod_instance(self, message: m.ModInstance, caller: Caller) -> m.ModInstanceReply:
        if not self.is_home:
            return m.ModInstanceReply(False)
        if message.full:
            self.full.append(message)
        for instance in message.instances:
            self.told[instance.id] = instance
            self.states.append((instance.id, instance.state))
        self._changed.set()
        return m.ModInstanceReply(True, tuple(self.unwanted), self.view.epoch)

    def _scan(self, message: m.StoreScan, caller: Caller) -> m.StoreItems:
        return m.StoreItems(tuple((k, v, 1) for k, v in self.revisions.items()), 1)

    async def _watch(self, message: m.StoreWatch, caller: Caller) -> m.StoreChanges:
        await asyncio.sleep(3600)
        return m.StoreChanges((), 1)


def run(
    story: Callable[[World], Coroutine[Any, Any, None]], data: Path, patience_s: float = PATIENCE_S
) -> None:
    async def main() -> None:
        world = World(data, patience_s)
        await world.open()
        try:
            await story(world)
        finally:
            await world.close()

    asyncio.run(main())


async def get(addr: str) -> dict[str, Any]:
    def ask() -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{addr}/", timeout=60) as answer:
            body: dict[str, Any] = json.loads(answer.read())
            return body

    return await asyncio.to_thread(ask)


def pack(of: Revision) -> bytes:
    return msgspec.msgpack.encode(of)


__all__ = ["RpcError", "World", "get", "pack", "revision", "run"]
