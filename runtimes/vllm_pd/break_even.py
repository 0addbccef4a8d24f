"""From how many uncached tokens on a prompt is better computed by a prefill engine: learned from what requests took.

Two lines, seconds until the first token over uncached tokens, one for prompts computed here and one for those
computed elsewhere; queues, leases and transfers count as they come. Where the lines cross is the threshold. A request
counts less with each that comes after it, whichever way they went, so that the threshold follows the load; while one
line is not known (any more) it stays where it was. Now and then a prompt goes the other way: a way that looked bad
once is measured again. Pure.
"""

from __future__ import annotations

from typing import Final

from kserve_ext.core.kv_line import Line

FIRST: Final = 256  # tokens: while nothing is known
LEAST: Final = 16  # a block
MOST: Final = 1 << 20
_FORGET: Final = 0.99  # what a request counts for after the next one
_ENOUGH: Final = 5.0  # samples, by what they count for
_SHORTEST_S: Final = 1e-4  # no engine is as fast: a clock was set
_TRY_EVERY: Final = 16


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
        if threshold // 4 <= tokens <= threshold * 4 or _known(other) is None:
            self._close += 1
            if self._close % _TRY_EVERY == 0:
                return tokens + 1 if tokens >= threshold else tokens
        return threshold

    def here_s(self, tokens: int) -> float | None:
        """What so many tokens would take here; None: not known, or it doesn't matter."""
        line = _known(self._here) if self._given is None else None
        return None if line is None else max(_SHORTEST_S, line[0] + line[1] * tokens)

    def took(self, elsewhere: bool, tokens: int, seconds: float) -> None:
        """A prompt with so many uncached tokens had its first token after so long."""
        if self._given is not None or seconds < _SHORTEST_S:
            return
        self._here.fade(_FORGET)
        self._elsewhere.fade(_FORGET)
        # By relative error: else the longest prompts alone would say where short ones cross.
        (self._elsewhere if elsewhere else self._here).add(tokens, seconds, seconds)
        a, b = _known(self._here), _known(self._elsewhere)
        if a is not None and b is not None:
            self.threshold = _crossing(b[0] - a[0], a[1] - b[1])


def _known(line: Line) -> tuple[float, float] | None:
    """(seconds at no tokens, seconds a token); None: not enough is known."""
    return line.fit() if line.count >= _ENOUGH else None


def _crossing(more: float, less: float) -> int:
    """Elsewhere takes so many seconds more, and so many a token less."""
    if less <= 0:  # it is no faster a token: it pays always or never
        return LEAST if more < 0 else MOST
    return int(min(MOST, max(LEAST, more / less)))
