"""How long requests took, by method, status and version of HTTP: OpenTelemetry's http.server.request.duration.

From the request's head to the last byte of its answer, time in a queue included, in the buckets that its conventions
name. Methods that they don't name count as _OTHER, so that clients can't make series at will.

Hot dialect: one look-up and two additions per request.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

BUCKETS_S: Final[tuple[float, ...]] = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
)
_METHODS: Final = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT")
)
_SUM: Final = len(BUCKETS_S) + 1

#: Method, status, version of HTTP.
Key = tuple[bytes, int, str]


class Durations:
    """One revision's."""

    __slots__ = ("by",)

    def __init__(self) -> None:
        #: By method, status and version: how many fell into each bucket, then the sum in seconds.
        self.by: dict[Key, list[float]] = {}

    def add(self, method: bytes, status: int, version: str, seconds: float) -> None:
        found = self.by.get((method, status, version))
        if found is None:
            key = (method if method in _METHODS else b"_OTHER", status, version)
            found = self.by.setdefault(key, [0] * (_SUM + 1))
        found[bisect_left(BUCKETS_S, seconds)] += 1
        found[_SUM] += seconds

    def buckets(self, key: Key) -> tuple[list[tuple[str, float]], float]:
        """Upper bound and number of all up to it, as Prometheus has them; and the sum."""
        found = self.by[key]
        total = 0.0
        buckets = []
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), found, strict=False):
            total += count
            buckets.append((bound, total))
        return buckets, found[_SUM]
