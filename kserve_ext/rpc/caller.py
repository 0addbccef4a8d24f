"""What a handler learns of who calls it, and the trace context that goes along with calls."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

import msgspec

from kserve_ext.wire.frames import NO_SPAN, NO_TRACE


class Trace(NamedTuple):
    """W3C trace context of a call."""

    trace_id: bytes = NO_TRACE
    span_id: bytes = NO_SPAN

    @staticmethod
    def new() -> Trace:
        return Trace(os.urandom(16), os.urandom(8))


UNTRACED: Final = Trace()


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Who calls, under which epoch, and until when (loop time)."""

    name: str  # authenticated
    epoch: int
    trace_id: bytes
    span_id: bytes
    expires: float
    connection: object = None

    @property
    def trace(self) -> Trace:
        return Trace(self.trace_id, self.span_id)

    def deadline_left_s(self, now: float) -> float:
        return max(0.0, self.expires - now)
