"""What went wrong with the starts of one revision, when to try again, and what to tell those who wait.

Refusals and failed starts are tried again after a time that doubles; a failure that the same start would meet
again (a bad argument, a broken model) ends the trying, until new demand comes after LONG_S. An instance that
becomes ready wipes the slate clean. One that was ready and died soon counts as a failed start, so that a crash
loop is slowed down, too.
"""

from __future__ import annotations

LEAST_S = 0.2
MOST_S = 10.0
MOST_REFUSED_S = 2.0  # with no room, it is worth looking more often
LONG_S = 30.0
NEVER_S = 10.0
SOON_S = 10.0


class Setbacks:
    __slots__ = ("count", "failed", "permanent", "permanent_until", "reason", "retry_at", "too_large")

    def __init__(self) -> None:
        self.count = 0  # in a row
        self.failed = 0  # starts that failed in all
        self.retry_at = 0.0
        self.reason = ""
        self.permanent = False
        self.permanent_until = 0.0
        self.too_large = False

    def refused(self, reason: str, now: float, *, never: bool = False) -> None:
        """There is no room, or nobody to ask. `never`: no node is large enough, so nobody waits for one."""
        self._again(reason, now, MOST_REFUSED_S)
        if never:
            self.permanent, self.permanent_until = True, now + NEVER_S
            self.too_large = True

    def nodes_came(self, now: float) -> None:
        """There are nodes that weren't there before: one of them may be large enough."""
        if self.too_large:
            self.permanent = self.too_large = False
            self.retry_at = now

    def start_failed(self, reason: str, permanent: bool, now: float) -> None:
        self.failed += 1
        self._again(reason, now, MOST_S)
        if permanent:
            self.permanent, self.permanent_until = True, now + LONG_S

    def succeeded(self) -> None:
        self.count, self.retry_at, self.reason = 0, 0.0, ""
        self.permanent = self.too_large = False

    def demanded(self, now: float) -> None:
        """New demand: a permanent failure of long ago is tried once more."""
        if self.permanent and now >= self.permanent_until:
            self.permanent = self.too_large = False
            self.retry_at = now

    def again_at(self, now: float) -> None:
        """There is reason to try sooner."""
        self.retry_at = min(self.retry_at, now)

    def retry_after_s(self, now: float) -> float:
        return max(1.0, (self.permanent_until if self.permanent else self.retry_at) - now)

    def _again(self, reason: str, now: float, most_s: float) -> None:
        if now >= self.retry_at:  # several of one batch are one setback
            self.retry_at = now + min(most_s, LEAST_S * 2**self.count)
            self.count = min(self.count + 1, 10)
        self.reason = reason
