"""Collector and deciders over a time in which the process stood still, by a clock of the test's own."""

from __future__ import annotations

import asyncio
import logging
import time
from types import SimpleNamespace

import pytest

from autoscaler_shim.knative.deciders import Deciders
from autoscaler_shim.knative.pods import PodIndex
from autoscaler_shim.knative.stats import collector as collector_module
from autoscaler_shim.knative.stats.collector import Collector
from autoscaler_shim.knative.stats.scraper import Scraper
from kserve_ext.api.knative.autoscaler_config import AutoscalerConfig
from kserve_ext.api.knative.autoscaling import PREFIX
from kserve_ext.api.knative.children import Windows
from kserve_ext.api.knative.config import Network
from kserve_ext.api.knative.pa import settings
from kserve_ext.core.knative.decider import Decider
from kserve_ext.core.knative.sampling import Load, Pod
from kserve_ext.core.scaling.window import Averages
from kserve_ext.wire.stats import Stat
from tests.support.api_server import ApiServer
from tests.support.knative_autoscaler import run

KEY = "default/r"
ANNOTATIONS = {"target": "10", "target-utilization-percentage": "100", "target-burst-capacity": "-1"}
PA = {
    "metadata": {
        "namespace": "default",
        "name": "r",
        "annotations": {PREFIX + name: value for name, value in ANNOTATIONS.items()},
    }
}


class World:
    """A revision with 25 requests in hand all the time, of which one activator reports every second."""

    def __init__(self, api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = 1_700_000_000.25
        clock = SimpleNamespace(time=lambda: self.wall, monotonic=time.monotonic)
        monkeypatch.setattr(collector_module, "time", clock)
        pods = self.pods = PodIndex(api.client(), lambda revision: None)
        self.scraper = Scraper(9090)
        self.seldom = False
        self.collector = Collector(
            pods, self.scraper, Network, lambda key: None, lambda key, seconds: None, lambda key: self.seldom
        )
        self.deciders = Deciders(self.collector, pods, lambda key: None)
        found = settings(PA, AutoscalerConfig(), 600.0)
        windows = Windows(found.spec.stable_window_s, found.panic_window_s, "", "linear")
        self.collector.configure(KEY, windows, KEY)
        self.decider: Decider = self.deciders.configure(KEY, found, KEY)

    def report(self) -> None:
        stat = Stat("activator", average_concurrent_requests=25.0, timestamp=int(self.wall))
        self.collector.record(KEY, stat)
        self.deciders.reported(KEY, stat)

    def seconds(self, count: int) -> None:
        for _ in range(count):
            self.report()
            for _ in range(10):
                self.wall += 0.1
                self.collector.now()

    def averages(self) -> Averages | None:
        return self.collector.averages(KEY, "concurrency")

    def tick(self) -> int:
        self.decider.tick(self.averages(), 3, self.collector.now())
        return self.decider.desired


@pytest.mark.parametrize("stopped_s", [5, 40, 61, 3600])
def test_a_stop_is_not_taken_for_a_time_without_load(stopped_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            world = World(api, monkeypatch)
            world.seconds(70)
            assert world.tick() == 3
            before = world.averages()
            assert before == Averages(25, 25)
            world.wall += stopped_s
            assert world.tick() == 3
            for _ in range(10):  # what has piled up in the websocket
                world.report()
            assert world.averages() == before
            world.wall += 0.6
            assert world.tick() == 3
            for _ in range(70):
                world.seconds(1)
                assert world.tick() == 3
            assert world.averages() == before
            await world.scraper.close()

    run(test())


def test_at_debug_each_decision_says_what_it_goes_by(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            world = World(api, monkeypatch)
            with caplog.at_level(logging.DEBUG, logger="autoscaler_shim.knative.deciders"):
                world.report()  # from zero at once
            world.seconds(3)
            await world.scraper.close()

    run(test())
    assert caplog.messages == [
        "default/r: concurrency stable 25.000, panic 25.000, target 10, ready 0: "
        "panics, desired 3, excess burst capacity -1"
    ]


def test_the_last_pod_may_go_before_its_scrape_begins(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked all the same: who would share nothing among nobody divided by zero."""

    async def test() -> None:
        async with ApiServer() as api:
            world = World(api, monkeypatch)
            pod, asked = Pod("10.0.0.1", 0.0), []

            async def scrape(target: str, pods: list[Pod], *_: object) -> Load:
                asked.append((target, pods))
                return Load(1.0, 0.0)

            monkeypatch.setattr(world.scraper, "scrape", scrape)
            left = [[], [pod]]
            monkeypatch.setattr(world.pods, "scrapable", lambda _: left.pop() if left else [])
            world.collector.configure(KEY, Windows(60.0, 6.0, "r-private", "linear"), KEY)
            world.collector._turn(KEY)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert asked == [("r-private.default", [pod])]
            await world.scraper.close()

    run(test())
    assert caplog.messages == []


def test_what_is_scraped_seldom_has_the_load_that_was_found_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the seconds between would count as such without load."""

    async def test() -> None:
        async with ApiServer() as api:
            world = World(api, monkeypatch)
            turns: list[int] = []

            async def scrape(*_: object) -> Load:
                turns.append(turn)
                return Load(10.0, 0.0)

            monkeypatch.setattr(world.scraper, "scrape", scrape)
            monkeypatch.setattr(world.pods, "scrapable", lambda _: [Pod("10.0.0.1", 0.0)])
            ticks = [0.0]
            clock = SimpleNamespace(time=lambda: world.wall, monotonic=lambda: ticks[0])
            monkeypatch.setattr(collector_module, "time", clock)
            world.collector.configure(KEY, Windows(60.0, 6.0, "r-private", "linear"), KEY)
            for turn in range(14):
                ticks[0] = 100.0 + 1.01 * turn
                world.seldom = 2 <= turn < 12
                world.collector._turn(KEY)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                for _ in range(10):
                    world.wall += 0.1
                    world.collector.now()
                assert world.averages() == Averages(10, 10)
            assert turns == [0, 1, 6, 11, 12, 13]
            monkeypatch.setattr(world.pods, "scrapable", lambda _: [])
            world.collector._turn(KEY)
            monkeypatch.setattr(world.pods, "scrapable", lambda _: [Pod("10.0.0.2", 0.0)])
            world.seldom = True
            for _ in range(3):
                world.collector._turn(KEY)
            assert world.averages() == Averages(10, 10), "of others nothing is known yet"
            await world.scraper.close()

    run(test())
