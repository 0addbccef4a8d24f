"""Nodes change hands between real Schedule functions while instances start: one joins, dies, is paused.

Nothing is placed twice, nothing that was promised is missing, and soon each node has one Schedule function again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoscaler_shim.node.cleanup import stop_all
from kserve_ext.core.facts import Command, Model, Resources, Revision, Scale
from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey
from kserve_ext.core.partitions import owners
from kserve_ext.rpc import RpcError
from kserve_ext.store.remote import RemoteStore
from kserve_ext.wire.messages import Item, Placements, Schedule
from tests.cluster.test_controller import Parts, Watcher

pytestmark = pytest.mark.cluster

NODES = ("node-0", "node-1", "node-2")
SLEEPER = Revision(
    RevisionKey("default/sleeper"),
    "default/sleeper",
    1,
    Command(("sleep", "600")),
    Model(),
    Resources(cpu_milli=10, memory_mib=1),
    Scale(),
)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    started = Parts(tmp_path)
    try:
        yield started
    finally:
        for process in started.running.values():
            os.kill(process.pid, signal.SIGCONT)
        started.end()
        for node in NODES:
            stop_all(tmp_path / "nodes" / node)


class Home:
    """Asks for an instance again and again until it is placed, unless its fate is unknown."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.placed: dict[InstanceID, str] = {}
        self.unknown: set[InstanceID] = set()
        self.refused: Counter[str] = Counter()
        self.news = asyncio.Event()
        self._turn = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        for k in itertools.count():
            task = asyncio.create_task(self._place(InstanceID(f"i{k}")))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0.05)

    async def settle(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _place(self, instance: InstanceID) -> None:
        while instance not in self.placed and instance not in self.unknown:
            view = self.watcher.views[-1]
            functions = view.of("schedule")
            function = functions[next(self._turn) % len(functions)]
            addr = self.watcher.membership.addr
            message = Schedule((Item(SLEEPER, (instance,)),), view.epoch, FunctionID("watcher"), addr)
            try:
                answer: Placements = await self.watcher.rpc.call(function.addr, message, 3.0)
            except RpcError as error:
                if error.sent:
                    self.unknown.add(instance)
                await asyncio.sleep(0.05)
                continue
            self.placed.update((p.instance, p.node) for p in answer.placed)
            self.news.set()
            for refused in answer.refused:
                self.refused[refused.reason] += 1
                if refused.unknown:
                    self.unknown.add(instance)
            await asyncio.sleep(0.05 if answer.refused or answer.stale else 0)


async def settled(watcher: Watcher) -> None:
    """Every Schedule function has the nodes that the view gives it, and no others."""
    held: dict[str, list[str]] = {}
    try:
        async with asyncio.timeout(100):
            while True:
                view = watcher.views[-1]
                wanted: dict[str, list[str]] = {m.id: [] for m in view.of("schedule")}
                for node, function in owners(view, "schedule").items():
                    wanted[function].append(node)
                try:
                    said = {function: await watcher.status(function) for function in wanted}
                except RpcError:
                    continue
                held = {function: [n["node"] for n in status["nodes"]] for function, status in said.items()}
                if held == wanted and view is watcher.views[-1]:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{held} under {watcher.views[-1]}") from None


def test_nodes_change_hands_while_instances_start(parts: Parts) -> None:
    async def story() -> None:
        async with Watcher(parts.controller) as watcher:
            await watcher.until("cluster-mgr-0", "schedule-0", *NODES)
            await settled(watcher)
            home = Home(watcher)
            load = asyncio.create_task(home.load())

            for joins in ("schedule-1", "schedule-2"):
                parts.start("schedule", joins)
                together = [f"schedule-{k}" for k in range(int(joins[-1]) + 1)]
                await watcher.until("cluster-mgr-0", *together, *NODES)
                await settled(watcher)
                await _more(home, 10)

            parts.kill("schedule-0")
            await watcher.until("cluster-mgr-0", "schedule-1", "schedule-2", *NODES)
            await settled(watcher)
            await _more(home, 10)

            paused = parts.running["schedule-1"].pid
            os.kill(paused, signal.SIGSTOP)
            await watcher.until("cluster-mgr-0", "schedule-2", *NODES)
            await settled(watcher)
            await _more(home, 10)
            os.kill(paused, signal.SIGCONT)
            await watcher.until("cluster-mgr-0", "schedule-1", "schedule-2", *NODES)
            await settled(watcher)
            await _more(home, 10)

            load.cancel()
            await home.settle()
            print(f"{len(home.placed)} placed, {len(home.unknown)} unknown, refused: {dict(home.refused)}")
            await check(watcher, home)
            store = RemoteStore(watcher.rpc, parts.controller)
            assert (await store.scan("nodes/")).keys() == {f"nodes/{node}" for node in NODES}
            await store.close()

    parts.start("controller", "controller-0")
    parts.start("cluster-mgr", "cluster-mgr-0")
    parts.start("schedule", "schedule-0")
    for node in NODES:
        parts.start("node", node, "--cpu", "16", "--memory", "4Gi", "--zygote-memory", "64Mi")
    asyncio.run(story())


async def _more(home: Home, count: int) -> None:
    """Some are placed after what has happened."""
    had = len(home.placed)
    async with asyncio.timeout(100):
        while len(home.placed) < had + count:
            home.news.clear()
            await home.news.wait()


async def check(watcher: Watcher, home: Home) -> None:
    running = {node: {i["id"] for i in (await watcher.status(node))["instances"]} for node in NODES}
    where = Counter(instance for found in running.values() for instance in found)
    assert [i for i, times in where.items() if times > 1] == [], "placed twice"
    assert where.keys() <= home.placed.keys() | home.unknown
    assert [i for i, node in home.placed.items() if i not in running[node]] == [], "promised, and not there"
