"""A rate with a burst: how long the next request has to wait so that no more than `qps` a second leave.

Like client-go's flow control: `burst` requests may go at once, after that they are spread; those who wait keep their
order, because each takes its place when it asks.
"""

from __future__ import annotations


class TokenBucket:
    __slots__ = ("_at", "_tokens", "burst", "qps")

    def __init__(self, qps: float, burst: int) -> None:
        if qps <= 0 or burst < 1:
            raise ValueError(f"qps {qps} and burst {burst} let nothing through")
        self.qps = qps
        self.burst = burst
        self._tokens = float(burst)  # below zero: that many have been promised already
        self._at: float | None = None

    def take(self, now: float) -> float:
        """Takes one token; the seconds to wait before it may be used."""
        if self._at is not None:
            self._tokens = min(float(self.burst), self._tokens + max(0.0, now - self._at) * self.qps)
        self._at = now if self._at is None else max(now, self._at)
        self._tokens -= 1.0
        return max(0.0, -self._tokens / self.qps)

    def take_now(self, now: float) -> float:
        """Takes one token only where it may be used at once (0); else how many seconds that isn't so."""
        wait_s = self.take(now)
        if wait_s > 0:
            self.give_back()
        return wait_s

    def give_back(self) -> None:
        """What was taken last isn't used."""
        self._tokens += 1.0
