"""Which rung a transfer takes, or whether decode is faster by computing the prompt itself: learned per pair.

A rung takes setup + bytes / rate, and the bytes that are under way on it go first (kv_plan.py). Both are learned
from what this pair's own transfers took; recent ones count most, few that are far off not at all. The first one also
opens what the rung needs (memory of the other process, say), so a slow first one counts for nothing. Until then,
and again some minutes after the last one, the prior of its kind holds: what the handshake told of the link. A
transfer that fails costs the time it took, so a rung that fails is expected to be slow for a while. What looked bad
once is tried again: at most one transfer in TRY_EVERY, where at most WORST times the fastest is expected, and so
that all tries together cost at most the TRY_EVERYth part of all transfers. Pure; `now` in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from kserve_ext.core.kv_line import Line
from kserve_ext.core.kv_plan import SHARE

RECOMPUTE: Final = "recompute"
TRY_EVERY: Final = 32
WORST: Final = 4.0
REST_S: Final = 5.0  # a rung that was measured since needs no try

_KEPT: Final = 16  # transfers
_FORGET: Final = 0.85  # what one counts for after the next one
_HALF_S: Final = 30.0  # and after so long without one, a half
_PRIOR: Final = 0.05  # of a transfer, what the prior counts for
_SHAPE: Final = 0.05  # and what the usual counts for at each of _SIZES
_SIZES: Final = (64 << 10, 64 << 20)
_NEAR: Final = 0.1  # a relative error that is none
_ROUNDS: Final = 8
_LEAST_LOSS_S: Final = (
    0.5  # what a failure costs: the prompt is computed late, the channel may be dialled again
)
_SHORTEST_S: Final = 1e-6
_MOST_RATE: Final = 1e12


class Prior(NamedTuple):
    """What is known of a rung before its first transfer."""

    setup_s: float
    rate: float  # bytes a second

    def takes(self, size: float) -> float:
        return self.setup_s + size / self.rate


#: Best first. By kind of rung: setup, rate where the link isn't known or is none, and the share of a link it gets.
_KINDS: Final[Mapping[str, tuple[float, float, float]]] = {
    "ipc": (1e-4, 40e9, 0.0),
    "shm": (1e-4, 6e9, 0.0),
    "rdma": (1e-4, 5e9, 0.9),
    "rdma-staged": (2e-4, 4e9, 0.8),
    "nixl": (5e-4, 4e9, 0.9),
    "tcp": (5e-4, 1e9, 0.5),
}


def prior(rung: str, link: float = 0.0) -> Prior:
    """`link`: bytes a second of the network interface or device below it; 0 = not known."""
    setup_s, rate, share = _KINDS.get(rung, _KINDS["tcp"])
    return Prior(setup_s, share * link if share and link else rate)


class Choice(NamedTuple):
    """`rung` may be RECOMPUTE. `reason` is for people: "rdma: 3.1 ms expected, tcp 22 ms"."""

    rung: str
    expected_s: float
    reason: str


class _Learned:
    """Of one rung."""

    __slots__ = ("_failures", "_line", "_loss_s", "_opened", "_prior", "_samples", "_successes", "seen")

    def __init__(self, known: Prior) -> None:
        self._prior = known
        self._samples: deque[tuple[float, float]] = deque(maxlen=_KEPT)  # bytes, seconds; the oldest first
        self._line = known
        self._failures = self._successes = self._loss_s = 0.0
        self._opened = False  # a transfer was whole
        self.seen = float("-inf")  # when a transfer ended last

    def takes(self, size: float, now: float) -> float:
        """Between what was measured and the prior, nearer to that the longer ago it was: by factors, not seconds."""
        known = _PRIOR / (_PRIOR + self._successes * self._faded(now))
        return float(self._line.takes(size) ** (1 - known) * self._prior.takes(size) ** known)

    def risk_s(self, now: float) -> float:
        """What failures cost on average."""
        faded = self._faded(now)
        failures, successes = self._failures * faded, self._successes * faded
        return failures / (failures + successes + 1) * max(self._loss_s, _LEAST_LOSS_S)

    def took(self, size: float, seconds: float, now: float) -> None:
        self._fade(now)
        first, self._opened = not self._opened, True
        if first and seconds > self._prior.takes(size):
            return
        self._successes += 1
        self._samples.append((size, max(seconds, _SHORTEST_S)))
        self._line = fitted(self._samples, self._prior)

    def failed(self, seconds: float, now: float) -> None:
        self._fade(now)
        self._failures += 1
        self._loss_s = max(seconds, self._loss_s / 2)

    def _faded(self, now: float) -> float:
        return float(0.5 ** ((now - self.seen) / _HALF_S)) if self._successes or self._failures else 1.0

    def _fade(self, now: float) -> None:
        factor = _FORGET * self._faded(now)
        self._failures *= factor
        self._successes *= factor
        self.seen = now


def fitted(samples: Sequence[tuple[float, float]], known: Prior) -> Prior:
    """Setup and rate with the least relative error, absolute and not squared: few that are far off don't matter.

    Later samples count more. Samples of one size say nothing of others: for these: the prior, times what is usual.
    """
    usual = sorted(seconds / known.takes(size) for size, seconds in samples)[len(samples) // 2]
    line = shape = Prior(known.setup_s * usual, known.rate / usual)
    for _ in range(_ROUNDS):
        sums = Line()
        for age, (size, seconds) in enumerate(reversed(samples)):
            expected = line.takes(size)
            sums.add(size, seconds, expected, _FORGET**age / max(_NEAR, abs(seconds / expected - 1)))
        for size in _SIZES:
            sums.add(size, shape.takes(size), max(shape.takes(size), line.takes(size)), _SHAPE)
        setup_s, each = sums.fit() or (line.setup_s, 1 / line.rate)
        if setup_s < 0:
            setup_s, each = 0.0, sums.through_zero()
        line = Prior(max(setup_s, _SHORTEST_S), min(1 / each, _MOST_RATE) if each > 0 else _MOST_RATE)
    return line


class Costs:
    """Of one pair, from the side that receives."""

    def __init__(self) -> None:
        self._rungs: dict[str, _Learned] = {}
        self._open: dict[int, tuple[str, int]] = {}  # transfers under way: rung, bytes
        self._since_try = 0  # transfers
        self._spare_s = 0.0  # what tries may cost

    def know(self, rung: str, known: Prior) -> None:
        """There is such a rung. What was learned of it before stays."""
        self._rungs.setdefault(rung, _Learned(known))

    def knows(self, rung: str) -> bool:
        return rung in self._rungs

    def expected_s(self, rung: str, size: int, now: float) -> float:
        """Until a transfer of so many bytes that begins now is whole."""
        learned = self._rungs[rung]
        return learned.takes(size + self._ahead(rung, size), now) + learned.risk_s(now)

    def choose(self, size: int, usable: Iterable[str], now: float, here_s: float | None = None) -> Choice:
        """`here_s`: what decode would take to compute the tokens itself; None = not known, or not allowed."""
        expected = {rung: self.expected_s(rung, size, now) for rung in usable if rung in self._rungs}
        if here_s is not None:
            expected[RECOMPUTE] = here_s
        if not expected:
            raise ValueError("no rung to choose from")
        best = min(expected, key=lambda rung: expected[rung])
        self._since_try += 1
        self._spare_s += expected[best] / TRY_EVERY
        tried = self._worth_a_try(expected, best, now) if self._since_try >= TRY_EVERY else None
        if tried is not None:
            self._since_try = 0
            self._spare_s -= expected[tried] - expected[best]
        chosen = tried or best
        return Choice(chosen, expected[chosen], self._reason(chosen, expected, size, now, tried is not None))

    def begin(self, number: int, rung: str, size: int) -> None:
        """A transfer of about so many bytes is under way, until `end`."""
        self._open[number] = rung, size

    def end(self, number: int) -> None:
        self._open.pop(number, None)

    def took(self, rung: str, size: int, seconds: float, now: float) -> None:
        """A transfer was whole: it, and what went before it in that time, had so many bytes."""
        if rung in self._rungs:
            self._rungs[rung].took(size, seconds, now)

    def failed(self, rung: str, seconds: float, now: float) -> None:
        """A transfer was not whole after so long, and the rung is to blame."""
        if rung in self._rungs:
            self._rungs[rung].failed(seconds, now)

    def _ahead(self, rung: str, size: int) -> int:
        """Bytes under way that go before those of a new transfer: shorter ones, and the share of a longer one."""
        others = [other for on, other in self._open.values() if on == rung]
        shorter = sum(other for other in others if other <= size)
        longer = max((other for other in others if other > size), default=0)
        return shorter + min(longer, size // (SHARE - 1))

    def _worth_a_try(self, expected: Mapping[str, float], best: str, now: float) -> str | None:
        """The rung that was not measured for longest."""
        rested = [
            rung
            for rung, seconds in expected.items()
            if rung not in (best, RECOMPUTE)
            and seconds <= WORST * expected[best]
            and seconds - expected[best] <= self._spare_s
            and now - self._rungs[rung].seen >= REST_S
        ]
        return min(rested, key=lambda rung: self._rungs[rung].seen, default=None)

    def _reason(self, chosen: str, expected: Mapping[str, float], size: int, now: float, tried: bool) -> str:
        where = " here" if chosen == RECOMPUTE else ""
        first = f"{chosen}: {spoken(expected[chosen])} expected{where}{self._why(chosen, size, now)}"
        others = sorted((seconds, rung) for rung, seconds in expected.items() if rung != chosen)
        said = [f"{rung} {spoken(seconds)}{self._why(rung, size, now)}" for seconds, rung in others]
        return ", ".join((first, *(["tried again"] if tried else []), *said))

    def _why(self, rung: str, size: int, now: float) -> str:
        """What makes it slower than it is by itself."""
        if rung == RECOMPUTE:
            return ""
        ahead, risk_s = self._ahead(rung, size), self._rungs[rung].risk_s(now)
        why = [f"{ahead / (1 << 20):.1f} MiB ahead"] if ahead else []
        if risk_s >= 1e-3:
            why.append(f"{spoken(risk_s)} for failures")
        return f" ({', '.join(why)})" if why else ""


def spoken(seconds: float) -> str:
    """3.1 ms, 22 ms, 1.5 s"""
    ms = seconds * 1e3
    if ms >= 1000:
        return f"{seconds:.1f} s"
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.2g} ms"
