"""A chaos run whose load or whose faults fail: nothing is done to its cluster any more when that is closed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos.cluster import Cluster, Part
from tests.chaos.faults import Fault, Schedule
from tests.chaos.plans import Plan
from tests.chaos.run import Run
from tests.chaos.statestore import StateStore, why_not

FAULTS = {"_faults", "_carry_out"}


class Standing(Cluster):
    """One part, and no process."""

    broken: asyncio.Event
    #: what was still under way when it was closed
    under_way: frozenset[str] | None = None

    async def start(self) -> None:
        self.history.mkdir(exist_ok=True)
        self.broken = asyncio.Event()
        self.parts["node-0"] = Part("node-0", "node", [], self.data, self.data)
        (self.data / "run").mkdir(parents=True)
        (self.data / "run" / "node-0.json").write_text("{}")

    def signal(self, part: Part, number: int) -> None:
        self.broken.set()

    async def close(self) -> None:
        names = (getattr(task.get_coro(), "__name__", "") for task in asyncio.all_tasks())
        self.under_way = frozenset(names) & FAULTS


class Failing:
    def __init__(self, cluster: Standing) -> None:
        self.cluster = cluster

    async def run(self, seconds: float) -> None:
        await self.cluster.broken.wait()
        raise ValueError("the load failed")


def test_faults_end_before_the_cluster_does_when_the_load_fails(tmp_path: Path) -> None:
    async def test() -> None:
        standing: list[Standing] = []
        plan = Plan(lambda history: [], lambda cluster, seed: Failing(standing[0]))
        faults = (Fault(0.0, "kill", "node-0", 600.0), Fault(600.0, "kill", "node-0", 1.0))
        run = Run(tmp_path, Schedule(1, 600.0, faults), plan, lambda text: None)
        run.cluster = Standing(tmp_path, plan.shape, run.said)
        standing.append(run.cluster)
        with pytest.raises(ValueError, match="the load failed"):
            await run.go()
        assert run.cluster.under_way == frozenset()

    asyncio.run(test())


class Idle:
    async def run(self, seconds: float) -> None: ...


class Unbreakable(Standing):
    def signal(self, part: Part, number: int) -> None:
        raise ValueError("it can not be broken")


def test_a_fault_that_can_not_be_carried_out_fails_the_run(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan(lambda history: [], lambda cluster, seed: Idle())
        faults = (Fault(0.0, "kill", "node-0", 1.0), Fault(0.0, "clock", "node-0", 600.0))
        run = Run(tmp_path, Schedule(1, 0.0, faults), plan, lambda text: None)
        run.cluster = Unbreakable(tmp_path, plan.shape, run.said)
        with pytest.raises(ExceptionGroup) as failed:
            await run.go()
        assert failed.group_contains(ValueError, match="it can not be broken")

    asyncio.run(test())


def test_faults_of_the_store_may_overlap(tmp_path: Path) -> None:
    if why := why_not():
        pytest.skip(f"no redis-server: {why}")

    async def test() -> None:
        pids: list[int] = []
        store = StateStore(tmp_path / "redis", "127.0.0.1", pids.append)
        await store.start()
        try:
            paused = asyncio.create_task(store.suffer("pause", 0.2))
            killed = asyncio.create_task(store.suffer("kill", 0.2))
            await asyncio.sleep(0)
            await asyncio.gather(*(store.suffer(kind, 0.0) for kind in ("kill", "pause", "flush")))
            assert len(pids) == 1, "the first kill keeps it away"
            await asyncio.gather(paused, killed)
            assert len(pids) == 2
            await store.suffer("flush", 0.0)
            await store.suffer("pause", 0.0)
            assert len(pids) == len(set(pids))
        finally:
            store.close()

    asyncio.run(test())
