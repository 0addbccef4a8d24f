"""What decode makes of its prefill peers' answers: which is left alone for a while, how long one may take.

A peer that failed rests for a time that doubles with each failure in a row; after it, one request tries it again.
Whether its channel stands is another matter (core/kv_links.py). Pure: times come from the caller.
"""

from __future__ import annotations

from typing import Final

LEAST_REST_S: Final = 1.0
MOST_REST_S: Final = 30.0

LEAST_TRANSFER_S: Final = 5.0
TOKEN_S: Final = 0.01  # a prompt that is computed more slowly than this is better off here


class _Rest:
    __slots__ = ("failures", "tried", "until")

    def __init__(self) -> None:
        self.failures = 0  # in a row
        self.until = 0.0
        self.tried = False  # a request asks it again


class Backoff:
    """Peers that have failed, by name."""

    def __init__(self) -> None:
        self._rests: dict[str, _Rest] = {}

    def may_ask(self, peer: str, now: float) -> bool:
        """Whether this request may; of those that come after a rest, it is one at a time."""
        rest = self._rests.get(peer)
        if rest is None:
            return True
        if now < rest.until:
            return False
        rest.tried, rest.until = True, now + _rest_s(rest.failures)
        return True

    def anyone_rests(self, now: float) -> bool:
        return any(now < rest.until for rest in self._rests.values())

    def resting(self, now: float) -> tuple[str, ...]:
        return tuple(sorted(name for name, rest in self._rests.items() if now < rest.until))

    def failed(self, peer: str, now: float) -> None:
        """Requests that were on their way together are one failure."""
        for name in [name for name, rest in self._rests.items() if now - rest.until > MOST_REST_S]:
            del self._rests[name]
        rest = self._rests.setdefault(peer, _Rest())
        if rest.tried or now >= rest.until:
            rest.failures, rest.tried = rest.failures + 1, False
            rest.until = now + _rest_s(rest.failures)

    def succeeded(self, peer: str) -> None:
        self._rests.pop(peer, None)


def transfer_s(tokens: int, most_s: float) -> float:
    """How long a transfer may take when so many tokens are computed until it is whole."""
    return min(most_s, LEAST_TRANSFER_S + TOKEN_S * tokens)


def _rest_s(failures: int) -> float:
    return min(MOST_REST_S, LEAST_REST_S * 2.0 ** min(failures - 1, 30))
