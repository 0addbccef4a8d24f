"""From how many uncached tokens on a prompt is better computed by a prefill engine: learned from what requests took.

Two lines, seconds until the first token over uncached tokens, one for prompts computed here and one for those
computed elsewhere; queues, leases and transfers count as they come. Where the lines cross is the threshold. A request
counts less with each that comes after it, whichever way they went, so that the threshold follows the load; while one
line is not known (any more) it stays where it was. Now and then a prompt goes the other way: a way that looked bad
once is measured again. Pure.
"""

from __future__ import annotations

from typing import Final

FIRST: Final = 256  # tokens: while nothing is known
LEAST: Final = 16  # a block
MOST: Final = 1 << 20
_FORGET: Final = 0.99  # what a request counts for after the next one
_ENOUGH: Final = 5.0  # samples, by what they count for
_SPREAD: Final = (
    0.01  # least variance of the tokens, relative to their mean squared, for a slope to mean anything
)
_SHORTEST_S: Final = 1e-4  # no engine is as fast: a clock was set
_TRY_EVERY: Final = 16


class Line:
    """Seconds as a line over tokens: least squares of the relative error, in which older samples count less."""

    __slots__ = ("_count", "_n", "_x", "_xx", "_xy", "_y")

    def __init__(self) -> None:
        self._count = self._n = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        weight = 1 / (seconds * seconds)  # else the longest prompts alone would say where short ones cross
        self._count += 1
        self._n += weight
        self._x += weight * tokens
        self._y += weight * seconds
        self._xx += weight * tokens * tokens
        self._xy += weight * tokens * seconds

    def forget(self) -> None:
        self._count *= _FORGET
        self._n *= _FORGET
        self._x *= _FORGET
        self._y *= _FORGET
        self._xx *= _FORGET
        self._xy *= _FORGET

    def fit(self) -> tuple[float, float] | None:
        """(seconds at no tokens, seconds a token); None: not enough is known."""
        if self._count < _ENOUGH:
            return None
        mean = self._x / self._n
        variance = self._xx / self._n - mean * mean
        if variance <= _SPREAD * mean * mean:
            return None
        slope = (self._xy / self._n - mean * self._y / self._n) / variance
        return self._y / self._n - slope * mean, slope


class BreakEven:
    """`given`: a threshold that is not to be learned."""

    def __init__(self, given: int | None = None) -> None:
        self._given = given
        self._here = Line()
        self._elsewhere = Line()
        self._close = 0  # prompts so near the threshold that the other way could be as good
        #: Prompts with fewer uncached tokens are computed here.
        self.threshold = FIRST if given is None else given

    def needed(self, tokens: int) -> int:
        """The threshold for this prompt: now and then another one, so that the other way is measured too."""
        threshold = self.threshold
        if self._given is not None or tokens < LEAST:
            return threshold
        other = self._here if tokens >= threshold else self._elsewhere
        if threshold // 4 <= tokens <= threshold * 4 or other.fit() is None:
            self._close += 1
            if self._close % _TRY_EVERY == 0:
                return tokens + 1 if tokens >= threshold else tokens
        return threshold

    def took(self, elsewhere: bool, tokens: int, seconds: float) -> None:
        """A prompt with so many uncached tokens had its first token after so long."""
        if self._given is not None or seconds < _SHORTEST_S:
            return
        self._here.forget()
        self._elsewhere.forget()
        (self._elsewhere if elsewhere else self._here).add(tokens, seconds)
        a, b = self._here.fit(), self._elsewhere.fit()
        if a is not None and b is not None:
            self.threshold = _crossing(b[0] - a[0], a[1] - b[1])


def _crossing(more: float, less: float) -> int:
    """Elsewhere takes so many seconds more, and so many a token less."""
    if less <= 0:  # it is no faster a token: it pays always or never
        return LEAST if more < 0 else MOST
    return int(min(MOST, max(LEAST, more / less)))
