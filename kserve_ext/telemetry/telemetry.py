"""What config-observability switches on in a part: metrics that are pushed, and the port with profiles.

Takes effect as soon as the ConfigMap changes. Metrics can be read on the part's own port whatever it says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from prometheus_client.registry import Collector as Source

from kserve_ext.api.knative.observability import GRPC, HTTP, Metrics, Observability
from kserve_ext.telemetry.collector import Collector
from kserve_ext.telemetry.metrics import Pusher
from kserve_ext.telemetry.profiling import Profiling

log = logging.getLogger(__name__)


def resource(part: str, pod_name: str, namespace: str) -> dict[str, str]:
    """Who sends, in OpenTelemetry's words."""
    return {
        "service.name": part,
        "service.version": _version(),
        "service.instance.id": pod_name,
        "k8s.pod.name": pod_name,
        "k8s.namespace.name": namespace,
    }


def _version() -> str:
    """ "unknown", as in Knative, where these are sources that nobody installed."""
    try:
        return version("kserve-galaxy")
    except PackageNotFoundError:
        return "unknown"


class Telemetry:
    """Make it where the loop runs; `apply` what is in force, `stop` at the end."""

    def __init__(
        self, source: Source, resource: Mapping[str, str], profiling_port: int, host: str = "0.0.0.0"
    ) -> None:
        self.profiling = Profiling(host, profiling_port)
        self._source = source
        self._resource = resource
        self._metrics = Metrics()
        self._pushing: asyncio.Task[None] | None = None

    def apply(self, config: Observability) -> None:
        self.profiling.enable(config.profiling)
        metrics = config.metrics
        if metrics == self._metrics:
            return
        self._metrics = metrics
        if self._pushing is not None:
            self._pushing.cancel()
            self._pushing = None
        if metrics.protocol in (GRPC, HTTP):
            collector = Collector("metrics", metrics.protocol, metrics.endpoint)
            pusher = Pusher(self._source, collector, self._resource, metrics.every_s)
            self._pushing = asyncio.create_task(pusher.run())
            log.info("metrics go to %s every %g s", collector.place, metrics.every_s)

    async def stop(self) -> None:
        """What is to be pushed is pushed once more."""
        self.profiling.close()
        pushing, self._pushing = self._pushing, None
        if pushing is not None:
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)
