"""A collector of OpenTelemetry, as config-observability names it: takes what is sent over gRPC or HTTP, or doesn't.

Whatever goes wrong is a word to the caller, who drops what it had to say; the log has it once for each new reason.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Literal

import aiohttp
from yarl import URL

from kserve_ext.api.knative.observability import GRPC
from kserve_ext.telemetry import grpc

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
Signal = Literal["traces", "metrics"]
_PATHS: Final[dict[Signal, str]] = {"traces": "/v1/traces", "metrics": "/v1/metrics"}
_METHODS: Final[dict[Signal, str]] = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}


class Collector:
    def __init__(self, signal: Signal, protocol: str, endpoint: str) -> None:
        self._signal: Signal = signal
        self._grpc = protocol == GRPC
        url = URL(endpoint)
        self._url = url if self._grpc or url.path not in ("", "/") else url.with_path(_PATHS[signal])
        self._problem = ""
        #: For the log: whoever reads it needs no password.
        self.place = str(self._url.with_user(None))

    async def take(self, export: bytes) -> bool:
        """Whether it took it."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                problem = await self._send(export)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            problem = str(error) or type(error).__name__
        if problem and problem != self._problem:
            log.warning("%s: %s %s; they are dropped meanwhile", self._signal, self.place, problem)
        self._problem = problem
        return not problem

    async def _send(self, export: bytes) -> str:
        if self._grpc:
            return await grpc.call(self._url, _METHODS[self._signal], export)
        headers = {"Content-Type": "application/x-protobuf"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(self._url, data=export, headers=headers) as answer,
        ):
            return "" if answer.status < 300 else f"answered {answer.status}"
