"""A registry of Prometheus' pushed to a collector of OpenTelemetry, under the names that OpenTelemetry has for them.

Prometheus' names are OpenTelemetry's with dots and units written out as underscores; both are known for what Knative
exports, and ours are written the same way. In Knative: pkg/autoscaler/scaling/metrics.go, pkg/activator/metrics.go,
observability/metrics/provider.go of knative.dev/pkg.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import Metric as Family
from prometheus_client.registry import Collector as Source

from kserve_ext.telemetry.collector import Collector
from kserve_ext.wire.otlp_metrics import Form, Metric, Point, encode

log = logging.getLogger(__name__)

LAST_S = 1.0
_FORMS: Final = {"gauge": Form.GAUGE, "counter": Form.SUM, "histogram": Form.HISTOGRAM}
#: What Prometheus' names have at their ends for these units.
_UNITS: Final = {"_seconds": "s", "_bytes": "By", "_per_second": "{request}/s"}
#: Of a series: which scope of OpenTelemetry's it is in; without it, ours.
SCOPE_LABEL: Final = "otel_scope_name"
#: Of work queues and of the API server's client.
K8S_SCOPE: Final = "knative.dev/pkg/observability/metrics/k8s"
_SCOPE: Final = "kserve-galaxy"
#: Parts of names that have an underscore of their own.
_KEPT: Final = ("not_ready", "status_code", "unfinished_work", "longest_running_processor")


class Pusher:
    def __init__(
        self, source: Source, collector: Collector, resource: Mapping[str, str], every_s: float
    ) -> None:
        self._source = source
        self._collector = collector
        self._resource = resource
        self._every_s = every_s
        self._began_ns = time.time_ns()

    async def run(self) -> None:
        """Until it is cancelled; what there is then is sent once more."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        try:
            while True:
                due = max(due + self._every_s, loop.time())
                await asyncio.sleep(due - loop.time())
                try:
                    await self.push()
                except Exception:  # a fault in what is read ends no later push
                    log.exception("metrics could not be pushed")
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_S):
                    await self.push()

    async def push(self) -> None:
        scopes = translated(self._source.collect())
        export = encode(self._resource, scopes, self._began_ns, time.time_ns())
        await self._collector.take(export)  # lost, it is made good by the next


def translated(families: Iterable[Family]) -> dict[str, list[Metric]]:
    """By scope."""
    scopes: dict[str, list[Metric]] = {}
    for family in families:
        form = _FORMS.get(family.type)
        if form is None:
            continue
        name, unit = named(family.name)
        for scope, points in _points(family, form).items():
            scopes.setdefault(scope, []).append(Metric(name, family.documentation, unit, form, points))
    return scopes


def named(name: str) -> tuple[str, str]:
    """OpenTelemetry's name and unit of Prometheus' name."""
    for end, unit in _UNITS.items():
        if name.endswith(end):
            return dotted(name.removesuffix(end)), unit
    return dotted(name), ""


def dotted(name: str) -> str:
    found = name.replace("_", ".")
    for kept in _KEPT:
        found = found.replace(kept.replace("_", "."), kept)
    return found


def _points(family: Family, form: Form) -> dict[str, list[Point]]:
    by_scope: dict[str, list[Point]] = {}
    buckets: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for sample in family.samples:
        labels = {label: value for label, value in sample.labels.items() if label not in (SCOPE_LABEL, "le")}
        points = by_scope.setdefault(sample.labels.get(SCOPE_LABEL, _SCOPE), [])
        attributes = {dotted(label): value for label, value in labels.items()}
        if form != Form.HISTOGRAM:
            if not sample.name.endswith("_created"):
                points.append(Point(attributes, sample.value))
            continue
        found = buckets.setdefault(tuple(sample.labels.get(label, "") for label in sorted(labels)), [])
        if sample.name.endswith("_bucket"):
            found.append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_sum"):
            bounds, upto = zip(*sorted(found), strict=True)
            counts = [int(here - before) for here, before in zip(upto, (0, *upto), strict=False)]
            points.append(Point(attributes, sample.value, counts, bounds[:-1]))
    return by_scope
