"""What an agent shows: slots by pool and state, GPU-seconds that stood by; and its health, on one port."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from kserve_ext.core.standby.facts import SlotState


class Figures(NamedTuple):
    slots: Mapping[tuple[str, SlotState], int]  # by pool and state
    idle_gpu_s: Mapping[str, float]  # by pool
    refused: int
    waiting: int  # slots whose token the API server has yet to check
    told: int
    untold: int
    reviews: int  # of tokens, that the API server was asked for


class Metrics(Collector):
    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        now = self._figures()
        slots = GaugeMetricFamily(
            "galaxy_standby_slots", "Standby pods of this node", labels=("pool", "state")
        )
        for (pool, state), count in sorted(now.slots.items()):
            slots.add_metric((pool, state), count)
        yield slots
        idle = CounterMetricFamily(
            "galaxy_standby_idle_gpu_seconds",
            "GPU-seconds of standby pods of this node that had no revision",
            labels=("pool",),
        )
        for pool, seconds in sorted(now.idle_gpu_s.items()):
            idle.add_metric((pool,), seconds)
        yield idle
        yield GaugeMetricFamily(
            "galaxy_standby_slots_unproven",
            "Slots that wait for the API server to check their token",
            now.waiting,
        )
        yield CounterMetricFamily("galaxy_standby_token_reviews", "TokenReviews asked for", now.reviews)
        yield CounterMetricFamily("galaxy_standby_slots_refused", "Connections of slots refused", now.refused)
        yield CounterMetricFamily("galaxy_standby_news_told", "News that activators have taken", now.told)
        yield CounterMetricFamily(
            "galaxy_standby_news_lost", "News that an activator did not take in time", now.untold
        )


class Page:
    def __init__(self, metrics: Metrics, ready: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._ready = ready
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        app = web.Application()
        app.router.add_get("/metrics", self._expose)
        app.router.add_get("/healthz", self._healthy)
        app.router.add_get("/readyz", self._readiness)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _expose(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readiness(self, _: web.Request) -> web.Response:
        if self._ready():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="slots may not dial yet, or it is about to end\n")
