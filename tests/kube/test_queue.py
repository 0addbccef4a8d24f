"""The work queue: one run per key at a time, nothing lost, failures later and later, counters."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from kserve_ext.kube import queue as queue_module
from kserve_ext.kube.errors import Conflict, Unavailable
from kserve_ext.kube.queue import WorkQueue


class Work:
    """A reconciler whose runs wait until the test lets them go."""

    def __init__(self, *, held: bool = True) -> None:
        self.begun: list[str] = []
        self.at_work: set[str] = set()
        self.most_at_work = 0
        self.results: dict[str, list[float | Exception | None]] = {}
        self._go = asyncio.Event()
        self._more = asyncio.Event()
        if not held:
            self._go.set()

    async def __call__(self, key: str) -> float | None:
        assert key not in self.at_work
        self.at_work.add(key)
        self.most_at_work = max(self.most_at_work, len(self.at_work))
        self.begun.append(key)
        self._more.set()
        try:
            await self._go.wait()
        finally:
            self.at_work.discard(key)
        results = self.results.get(key)
        result = results.pop(0) if results else None
        if isinstance(result, Exception):
            raise result
        return result

    def go(self) -> None:
        self._go.set()

    async def until_begun(self, count: int) -> None:
        while len(self.begun) < count:
            self._more.clear()
            await self._more.wait()


def play(
    scenario: Callable[[Work, WorkQueue[str]], Awaitable[None]], workers: int = 2, *, held: bool = True
) -> None:
    async def main() -> None:
        work = Work(held=held)
        queue: WorkQueue[str] = WorkQueue(work, workers, name="test")
        queue.start()
        try:
            await scenario(work, queue)
        finally:
            await queue.stop()

    uvloop.run(main())


def test_keys_in_line_are_there_once_and_workers_are_bounded() -> None:
    async def scenario(work: Work, queue: WorkQueue[str]) -> None:
        for key in "abcabcdd":
            queue.add(key)
        await work.until_begun(2)
        assert queue.depth == 2
        assert len(queue.running_s()) == 2
        work.go()
        await queue.idle()
        assert sorted(work.begun) == ["a", "b", "c", "d"]
        assert work.most_at_work == 2
        assert (queue.counters.added, queue.counters.runs, queue.counters.failures) == (4, 4, 0)
        for times in (queue.counters.waited, queue.counters.ran):
            assert times.buckets[-1] == ("+Inf", 4)
        assert queue.running_s() == []

    play(scenario)


def test_what_is_added_while_at_work_runs_once_more_afterwards() -> None:
    async def scenario(work: Work, queue: WorkQueue[str]) -> None:
        queue.add("a")
        await work.until_begun(1)
        queue.add("a")
        queue.add("a")
        work.go()
        await queue.idle()
        assert work.begun == ["a", "a"]

    play(scenario)


def test_a_result_asks_for_another_run() -> None:
    async def scenario(work: Work, queue: WorkQueue[str]) -> None:
        work.results["a"] = [0.001, 0.0, None]
        queue.add("a")
        await work.until_begun(3)
        await queue.idle()
        assert work.begun == ["a", "a", "a"]

    play(scenario, held=False)


@pytest.mark.parametrize("delays", [(3600.0, 0.001), (0.001, 3600.0)])
def test_of_several_delays_the_earliest_counts(delays: tuple[float, float]) -> None:
    async def scenario(work: Work, queue: WorkQueue[str]) -> None:
        for delay in delays:
            queue.add_after("a", delay)
        await work.until_begun(1)
        await queue.idle()
        assert work.begun == ["a"]
        queue.add_after("a", 3600.0)
        queue.forget("a")
        queue.add_after("a", 0.001)
        await work.until_begun(2)

    play(scenario, held=False)


def test_failures_wait_longer_each_time_until_a_run_succeeds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counts: list[int] = []

    def pause(failures: int, least_s: float, most_s: float, chance: float) -> float:
        counts.append(failures)
        return 0.001

    monkeypatch.setattr(queue_module, "pause_s", pause)
    caplog.set_level(logging.INFO)

    async def scenario(work: Work, queue: WorkQueue[str]) -> None:
        gone = Unavailable(503, "ServiceUnavailable", "away")
        work.results["a"] = [gone, Conflict(409, "Conflict", "changed"), ValueError("a bug"), None, gone]
        queue.add("a")
        await work.until_begun(4)
        await queue.idle()
        queue.add("a")
        await work.until_begun(6)
        await queue.idle()
        assert queue.counters.failures == 4

    play(scenario, held=False)
    assert counts == [1, 2, 3, 1]
    assert "ServiceUnavailable: away" in caplog.text
    assert "ValueError: a bug" in caplog.text
    assert "Conflict" not in caplog.text


def test_retry_after_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(work: Work, queue: WorkQueue[str]) -> None:
        asked: list[float] = []
        monkeypatch.setattr(queue, "add_after", lambda key, seconds: asked.append(seconds))
        work.results["a"] = [Unavailable(429, "TooManyRequests", "later", 7.0)]
        queue.add("a")
        await queue.idle()
        assert asked == [7.0]

    play(scenario, held=False)


def test_a_run_that_hangs_is_ended_and_counted_as_failed(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        work = Work()
        queue: WorkQueue[str] = WorkQueue(work, name="test", timeout_s=0.01)
        queue.start()
        queue.add("a")
        await work.until_begun(2)
        assert queue.counters.failures >= 1
        await queue.stop()

    uvloop.run(main())
    assert "test a: failed" in caplog.text
    assert "it took too long" in caplog.text


def test_before_start_keys_gather_and_stop_ends_the_runs() -> None:
    async def main() -> None:
        work = Work()
        queue: WorkQueue[str] = WorkQueue(work, workers=1)
        queue.add("a")
        queue.add("b")
        assert (queue.depth, work.begun) == (2, [])
        queue.start()
        await work.until_begun(1)
        queue.add_after("c", 0.001)
        await queue.stop()
        assert (work.begun, work.at_work, queue.depth) == (["a"], set(), 1)

    uvloop.run(main())


@pytest.mark.parametrize("seed", range(5))
def test_every_add_is_followed_by_a_run_that_began_after_it(seed: int) -> None:
    async def main() -> None:
        chance = random.Random(seed)
        clock = 0
        added: dict[int, int] = {}
        ran: dict[int, int] = {}

        async def reconcile(key: int) -> float | None:
            nonlocal clock
            clock += 1
            ran[key] = clock
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            if chance.random() < 0.1:
                raise Unavailable(0, "NoAnswer", "away")
            return chance.choice([None, None, None, 0.0005])

        queue: WorkQueue[int] = WorkQueue(reconcile, 3)
        queue.start()
        for _ in range(400):
            key = chance.randrange(12)
            clock += 1
            added[key] = clock
            queue.add(key)
            if chance.random() < 0.4:
                await asyncio.sleep(0)
        await queue.idle()
        assert all(ran[key] > added[key] for key in added)
        await queue.stop()

    uvloop.run(main())
