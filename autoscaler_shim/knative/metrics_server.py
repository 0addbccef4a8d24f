"""Serves the autoscaler's series on port 9090, read off its parts at the moment when somebody scrapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from autoscaler_shim.knative.deciders import Deciders, Entry
from autoscaler_shim.knative.metric_objects import MetricObjects
from autoscaler_shim.knative.metrics import Exposition, Queue, ScrapeTimes, Series
from autoscaler_shim.knative.reconciler import Reconciler
from kserve_ext.api.knative.conditions import text_map
from kserve_ext.api.knative.pa import CONFIGURATION_LABEL, SERVICE_LABEL
from kserve_ext.telemetry.target import Target


class MetricsServer:
    def __init__(
        self,
        reconciler: Reconciler,
        deciders: Deciders,
        metric_objects: MetricObjects,
        times: ScrapeTimes,
        counters: Callable[[], Mapping[str, float]],
        target: Mapping[str, str],
    ) -> None:
        self._reconciler = reconciler
        self._deciders = deciders
        self._metric_objects = metric_objects
        self.registry = CollectorRegistry()
        self.registry.register(Target(target))
        self.registry.register(Exposition(self._series, times, self._queues, counters))
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, host: str | None, port: int) -> None:
        app = web.Application()
        app.router.add_get("/metrics", self._expose)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _expose(self, _: web.Request) -> web.Response:
        headers = {"Content-Type": CONTENT_TYPE_LATEST}
        return web.Response(body=generate_latest(self.registry), headers=headers)

    def _queues(self) -> list[Queue]:
        package = "knative.dev.serving.pkg.reconciler"
        return [
            Queue(f"{package}.{name}", queue.depth, queue.counters, queue.running_s())
            for name, queue in (
                ("autoscaling.kpa.Reconciler", self._reconciler.queue),
                ("metric.reconciler", self._metric_objects.queue),
            )
        ]

    def _series(self) -> list[Series]:
        found = []
        for pa, outcome, pods in self._reconciler.observed():
            metadata = pa["metadata"]
            labels = text_map(metadata.get("labels"))
            values: dict[str, float] = {
                "kn_revision_pods_requested": outcome.want,
                "kn_revision_pods_count": pods.ready,
                "kn_revision_pods_not_ready_count": pods.not_ready,
                "kn_revision_pods_pending_count": pods.pending,
                "kn_revision_pods_terminating_count": pods.terminating,
            }
            entry = self._deciders.entries.get(f"{metadata['namespace']}/{metadata['name']}")
            if entry is not None:
                values |= _decided(entry)
            found.append(
                Series(
                    metadata["namespace"],
                    labels.get(SERVICE_LABEL, ""),
                    labels.get(CONFIGURATION_LABEL, ""),
                    metadata["name"],
                    values,
                )
            )
        return found


def _decided(entry: Entry) -> dict[str, float]:
    decider = entry.decider
    name = f"kn_revision_{entry.metric}"
    unit = "_per_second" if entry.metric == "rps" else ""
    values: dict[str, float] = {
        "kn_revision_pods_desired": decider.desired,
        "kn_revision_capacity_excess": decider.excess_burst,
        "kn_revision_panic_mode": decider.panicking,
        f"{name}_target{unit}": decider.spec.target,
    }
    if decider.averages is not None:
        values[f"{name}_stable{unit}"] = decider.averages.stable
        values[f"{name}_panic{unit}"] = decider.averages.panic
    return values
