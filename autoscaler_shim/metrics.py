"""The control plane's own series in Prometheus' form, on `/metrics` of the controller's admin port."""

from __future__ import annotations

from collections.abc import Iterator

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from kserve_ext.core.control.facts import SCALED
from kserve_ext.core.control.machine import ElasticMachine
from kserve_ext.core.membership import MembershipMachine


class ControlCollector(Collector):
    def __init__(self, membership: MembershipMachine, machine: ElasticMachine) -> None:
        self._membership, self._machine = membership, machine

    def collect(self) -> Iterator[Metric]:
        membership, machine = self._membership, self._machine
        yield GaugeMetricFamily("galaxy_view_epoch", "Of the view.", membership.epoch)
        gauges = {
            "wanted": GaugeMetricFamily("galaxy_functions_wanted", "As decided.", labels=("kind",)),
            "running": GaugeMetricFamily("galaxy_functions", "That work is divided among.", labels=("kind",)),
            "draining": GaugeMetricFamily(
                "galaxy_functions_draining", "That are about to go.", labels=("kind",)
            ),
            "srps": GaugeMetricFamily(
                "galaxy_scaling_requests_per_second", "Asked of all functions of a kind.", labels=("kind",)
            ),
            "pressure": GaugeMetricFamily(
                "galaxy_functions_needed", "How many functions the work would fill.", labels=("kind",)
            ),
        }
        counters = {
            "applications": CounterMetricFamily(
                "galaxy_scale_out_applications", "By functions past their threshold.", labels=("kind",)
            ),
            "growths": CounterMetricFamily(
                "galaxy_scale_outs", "Decisions for more functions.", labels=("kind",)
            ),
            "started": CounterMetricFamily(
                "galaxy_functions_started", "By the controller.", labels=("kind",)
            ),
            "failed": CounterMetricFamily(
                "galaxy_functions_failed", "That ended unasked, or never came.", labels=("kind",)
            ),
        }
        for kind in SCALED:
            scaling, roster = machine.scalings[kind], machine.roster
            label = (kind,)
            gauges["wanted"].add_metric(label, scaling.wanted)
            gauges["running"].add_metric(label, len(membership.view.of(kind)))
            gauges["draining"].add_metric(label, roster.counts(kind).draining)
            gauges["srps"].add_metric(label, scaling.srps)
            gauges["pressure"].add_metric(label, scaling.pressure)
            counters["applications"].add_metric(label, scaling.applications_total)
            counters["growths"].add_metric(label, scaling.growths_total)
            counters["started"].add_metric(label, roster.started_total[kind])
            counters["failed"].add_metric(label, roster.failed_total[kind])
        yield from gauges.values()
        yield from counters.values()


class MetricsServer:
    """One port, for as long as the process lives."""

    def __init__(self, collector: Collector) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(collector)
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> str:
        """Its address, with the port that was chosen for 0."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        host, port = self._runner.addresses[0][:2]
        return f"{host}:{port}"

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        headers = {"Content-Type": CONTENT_TYPE_LATEST}
        return web.Response(body=generate_latest(self.registry), headers=headers)
