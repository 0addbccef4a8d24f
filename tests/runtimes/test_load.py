"""What an engine tells home of its load: what it did since the last time, and nothing while it rests."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from runtimes.vllm_pd import load
from runtimes.vllm_pd.load import Load, LoadReports, occupancy


class Client:
    def __init__(self) -> None:
        self.at_rest = True
        self.generated = 0
        self.resources = SimpleNamespace(engine_dead=False)
        self.core = core(0.25, 1, 8)

    async def call(self, job: Any) -> Any:
        assert not self.at_rest, "an engine at rest is left alone"
        return job(self.core)


class Home:
    def __init__(self) -> None:
        self.loads: asyncio.Queue[Load] = asyncio.Queue()

    async def report(self, load: Load) -> None:
        self.loads.put_nowait(load)


def core(usage: float, running: int, seats: int) -> Any:
    cache = SimpleNamespace(usage=usage)
    scheduler = SimpleNamespace(kv_cache_manager=cache, running=[0] * running, max_num_running_reqs=seats)
    return SimpleNamespace(scheduler=scheduler)


def test_the_fuller_of_blocks_and_seats() -> None:
    assert [occupancy(core(*c)) for c in ((0.5, 1, 4), (0.1, 3, 4), (0.0, 0, 0), (1.0, 4, 4))] == [
        0.5,
        0.75,
        0,
        1,
    ]


def test_differences_are_told_and_rest_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "SAMPLE_S", 0.0)
    monkeypatch.setattr(load, "REPORT_S", 0.0)

    async def test() -> None:
        client, home = Client(), Home()
        reports = LoadReports(client, home)
        running = asyncio.create_task(reports.run())
        for _ in range(20):
            await asyncio.sleep(0)
        assert home.loads.empty()
        client.at_rest, client.generated = False, 100
        told = await home.loads.get()
        assert (told.generated, told.occupancy, told.unsent) == (100, 0.25, 0)
        client.generated = 130
        assert (await home.loads.get()).generated == 30
        reports.unsent(7)
        assert (await home.loads.get())[::3] == (0, 7)
        running.cancel()

    asyncio.run(test())
