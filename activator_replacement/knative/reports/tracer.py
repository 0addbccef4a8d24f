"""Spans of the requests that go through an activator, sent to a collector as config-observability says.

A request's trace goes on from its traceparent, or begins here for a share of them; the pod hears of the activator's
own span. Three spans a request: handle, and in it throttler_try (until it was sent) and activator_proxy. Sent in
batches to a collector, or printed as one line of JSON each; what the collector doesn't take in time is dropped and
counted. Switched off, none of this runs. In Knative: observability/tracing/provider.go of knative.dev/pkg,
pkg/activator/handler/handler.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from kserve_ext.api.knative.observability import STDOUT, Tracing
from kserve_ext.api.knative.revision import Activated
from kserve_ext.telemetry.collector import Collector
from kserve_ext.wire.traces import (
    CLIENT,
    INTERNAL,
    SERVER,
    Parent,
    Span,
    as_json,
    encode,
    parse_parent,
    sampled,
)

SCOPE: Final = "knative.dev/serving/pkg/activator"
PERIOD_S = 5.0
BATCH = 512
MOST_UNSENT = 2048
LAST_S = 1.0


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


class Tracer:
    def __init__(
        self, config: Tracing, resource: Mapping[str, str], print_: Callable[[str], object] = print
    ) -> None:
        """`config`: with a protocol that isn't none."""
        self.dropped = 0
        #: What becomes of those whose caller has decided; None: the caller's word holds.
        self._always: bool | None = None
        if config.protocol == STDOUT or config.rate >= 1.0:
            self._always = True
        elif config.rate <= 0.0:
            self._always = False
        self._rate = config.rate
        self._resource = resource
        self._print = print_
        self._collector = (
            None if config.protocol == STDOUT else Collector("traces", config.protocol, config.endpoint)
        )
        self._spans: deque[Span] = deque()
        self._full = asyncio.Event()

    def begin(self, request: Traced) -> Trace:
        parent = parse_parent(request.header(b"traceparent") or b"")
        trace_id = random.randbytes(16) if parent is None else parent.trace_id
        if self._always is not None:
            taken = self._always
        else:
            taken = sampled(trace_id, self._rate) if parent is None else parent.sampled
        return Trace(b"" if parent is None else parent.span_id, Parent(trace_id, random.randbytes(8), taken))

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
        try:
            while True:
                self._full.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PERIOD_S):
                        await self._full.wait()
                await self._send()
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_S):
                    await self._send()
            self.dropped += len(self._spans)
            self._spans.clear()

    def _keep(self, spans: list[Span]) -> None:
        if len(self._spans) + len(spans) > MOST_UNSENT:
            self.dropped += len(spans)
            return
        self._spans.extend(spans)
        if len(self._spans) >= BATCH:
            self._full.set()

    async def _send(self) -> None:
        while self._spans:
            batch = [self._spans.popleft() for _ in range(min(BATCH, len(self._spans)))]
            if self._collector is None:
                self._print("\n".join(json.dumps(as_json(self._resource, SCOPE, span)) for span in batch))
                continue
            try:
                taken = await self._collector.take(encode(self._resource, SCOPE, batch))
            except asyncio.CancelledError:  # whether it has come nobody knows: ids tell one that comes twice
                self._spans.extendleft(reversed(batch))
                raise
            if not taken:
                self.dropped += len(batch)
