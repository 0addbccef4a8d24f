"""What config-observability switches on in an activator: traces, the request log, metrics that are pushed, profiles.

Read whenever the ConfigMap changes; requests that are under way end as they began. What is wrong changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from prometheus_client.registry import Collector

from activator_replacement.knative.dispatcher import Dispatcher
from activator_replacement.knative.reports.request_log import RequestLog
from activator_replacement.knative.reports.tracer import Tracer
from kserve_ext.api.knative.observability import NONE, Observability, observability
from kserve_ext.kube.config_map import in_force
from kserve_ext.rpc.background import kept_up
from kserve_ext.telemetry.telemetry import Telemetry


class Observing:
    def __init__(
        self, dispatcher: Dispatcher, metrics: Collector, resource: Mapping[str, str], host: str, port: int
    ) -> None:
        """`host`, `port`: of profiles."""
        self.telemetry = Telemetry(metrics, resource, port, host)
        self._dispatcher = dispatcher
        self._resource = resource
        self._config = Observability()
        self._tracing: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def changed(self, name: str, data: Mapping[str, str]) -> None:
        config, _ = in_force(name, data, observability, self._config)
        before, self._config = self._config, config
        if config.request_log != before.request_log:
            self._dispatcher.request_log = RequestLog(config.request_log) if config.request_log else None
        if config.tracing != before.tracing:
            self._end_tracing()
            if config.tracing.protocol != NONE:
                tracer = self._dispatcher.tracer = Tracer(config.tracing, self._resource)
                self._tracing = asyncio.create_task(kept_up("sending traces", tracer.run))
        self.telemetry.apply(config)

    def metrics_address(self, host: str, port: int) -> tuple[str, int]:
        """Where metrics are read, asked once, when it begins to listen."""
        found, port = self._config.metrics.listens(host, port)
        return found or host, port

    async def stop(self) -> None:
        """What is still to be sent is sent."""
        self._end_tracing()
        await asyncio.gather(*self._ending, self.telemetry.stop(), return_exceptions=True)

    def _end_tracing(self) -> None:
        self._dispatcher.tracer = None
        tracing, self._tracing = self._tracing, None
        if tracing is not None:
            tracing.cancel()
            self._ending.add(tracing)
            tracing.add_done_callback(self._ending.discard)
