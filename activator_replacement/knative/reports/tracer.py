"""Spans of the requests that go through an activator, sent to a collector as config-observability says.

A request's trace goes on from its traceparent, or begins here for a share of them; the pod hears of the activator's
own span. Three spans a request: handle, and in it throttler_try (until it was sent) and activator_proxy. Sent in
batches over OTLP's HTTP; what the collector doesn't take in time is dropped and counted. Switched off, none of this
runs. In Knative: pkg/observability/tracing of knative.dev/pkg, pkg/activator/handler/handler.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

import aiohttp
from yarl import URL

from kserve_ext.api.knative.revision import Activated
from kserve_ext.wire.traces import CLIENT, INTERNAL, SERVER, Parent, Span, encode, parse_parent, sampled

log = logging.getLogger(__name__)

SCOPE: Final = "knative.dev/serving/pkg/activator"
PERIOD_S = 5.0
BATCH = 512
MOST_UNSENT = 2048
TIMEOUT_S = 10.0


class Settings(NamedTuple):
    endpoint: str
    rate: float  # of those that begin here, from 0 to 1


class Traced(Protocol):
    """A request, as far as its spans go."""

    @property
    def method(self) -> bytes: ...
    def header(self, name: bytes) -> bytes | None: ...


class Trace:
    """One request's."""

    __slots__ = ("handle_id", "parent_id", "proxy", "sent_ns", "start_ns")

    def __init__(self, parent_id: bytes, proxy: Parent) -> None:
        self.parent_id = parent_id
        self.handle_id = random.randbytes(8)
        self.proxy = proxy  # what the pod is told
        self.start_ns = time.time_ns()
        self.sent_ns = 0


def settings(config: Mapping[str, str]) -> Settings | None:
    """Of config-observability; None: no traces."""
    protocol = config.get("tracing-protocol", "none")
    if protocol in ("", "none"):
        return None
    if protocol != "http/protobuf":
        log.warning(
            "tracing-protocol %s is not spoken here, and no traces are sent: set it to http/protobuf in "
            "config-observability; every OpenTelemetry collector takes that, on port 4318",
            protocol,
        )
        return None
    try:
        url = URL(config.get("tracing-endpoint", ""))
        rate = float(config.get("tracing-sampling-rate", "0"))
    except ValueError as error:
        log.warning("no traces are sent, config-observability has a value of no use: %s", error)
        return None
    if url.scheme not in ("http", "https") or not 0.0 <= rate <= 1.0:
        log.warning("no traces are sent: tracing-endpoint is a URL, tracing-sampling-rate from 0 to 1")
        return None
    return Settings(str(url if url.path not in ("", "/") else url.with_path("/v1/traces")), rate)


class Tracer:
    def __init__(self, settings: Settings, pod_name: str, namespace: str) -> None:
        self.dropped = 0
        self._settings = settings
        self._resource = {
            "service.name": "activator",
            "service.instance.id": pod_name,
            "k8s.pod.name": pod_name,
            "k8s.namespace.name": namespace,
        }
        self._spans: deque[Span] = deque()
        self._full = asyncio.Event()
        self._problem = ""

    def begin(self, request: Traced) -> Trace:
        parent = parse_parent(request.header(b"traceparent") or b"")
        if parent is None:
            trace_id = random.randbytes(16)
            proxy = Parent(trace_id, random.randbytes(8), sampled(trace_id, self._settings.rate))
            return Trace(b"", proxy)
        return Trace(parent.span_id, Parent(parent.trace_id, random.randbytes(8), parent.sampled))

    def ended(self, request: Traced, trace: Trace, facts: Activated, status: int) -> None:
        """`status`: what it was answered with, 0 = nothing."""
        proxy = trace.proxy
        if not proxy.sampled:
            return
        now = time.time_ns()
        sent = trace.sent_ns or now
        place: dict[str, str | int] = {
            "kn.service.name": facts.service,
            "kn.configuration.name": facts.configuration,
            "kn.revision.name": facts.name,
            "k8s.namespace.name": facts.namespace,
            "http.request.method": request.method.decode("latin-1"),
        }
        if status:
            place["http.response.status_code"] = status
        failed = status >= 500 or not status
        spans = [
            Span(
                proxy.trace_id,
                trace.handle_id,
                trace.parent_id,
                "handle",
                SERVER,
                trace.start_ns,
                now,
                place,
                failed,
            ),
            Span(
                proxy.trace_id,
                random.randbytes(8),
                trace.handle_id,
                "throttler_try",
                INTERNAL,
                trace.start_ns,
                sent,
                {},
                not trace.sent_ns,
            ),
        ]
        if trace.sent_ns:
            spans.append(
                Span(
                    proxy.trace_id,
                    proxy.span_id,
                    trace.handle_id,
                    "activator_proxy",
                    CLIENT,
                    sent,
                    now,
                    {},
                    failed,
                )
            )
        self._keep(spans)

    async def run(self) -> None:
        """Until it is cancelled; what is left then is sent at once."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
            try:
                while True:
                    self._full.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(PERIOD_S):
                            await self._full.wait()
                    await self._send(session)
            finally:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self._send(session)

    def _keep(self, spans: list[Span]) -> None:
        if len(self._spans) + len(spans) > MOST_UNSENT:
            self.dropped += len(spans)
            return
        self._spans.extend(spans)
        if len(self._spans) >= BATCH:
            self._full.set()

    async def _send(self, session: aiohttp.ClientSession) -> None:
        while self._spans:
            batch = [self._spans.popleft() for _ in range(min(BATCH, len(self._spans)))]
            body = encode(self._resource, SCOPE, batch)
            try:
                headers = {"Content-Type": "application/x-protobuf"}
                async with session.post(self._settings.endpoint, data=body, headers=headers) as answer:
                    problem = "" if answer.status < 300 else f"answered {answer.status}"
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = str(error) or type(error).__name__
            if problem:
                self.dropped += len(batch)
            if problem and problem != self._problem:
                log.warning("traces: %s %s; spans are dropped meanwhile", self._settings.endpoint, problem)
            self._problem = problem
