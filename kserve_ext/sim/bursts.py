"""A synthetic trace of function bursts, built to the load that our users describe; no public one is at hand.

Its four facts, which `facts` measures: peak to trough over 200 times, rates that double within five minutes dozens of
times a day, no scale-up at all in about nine tenths of the time, and bursts that touch many functions at once.
Between bursts functions idle at a base rate; a burst multiplies the rate of a random set of them for some minutes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from math import ceil
from typing import Final, NamedTuple

from kserve_ext.sim.traces import Arrival

SLOT_S: Final = 5.0  # rates are constant so long
WITHIN_S: Final = 300.0  # a doubling within this counts


@dataclass(frozen=True)
class Shape:
    """Of one trace; the same shape and seed make the same trace."""

    seconds: float = 7200.0
    functions: int = 200
    base: float = 0.5  # requests a second, all functions together, in the trough
    peak: float = 250.0  # times base, at the height of the largest burst
    bursts: int = 12
    rise_s: float = 20.0
    hold_s: float = 10.0
    fall_s: float = 60.0
    work_s: float = 0.2  # of a request, in the mean
    seed: int = 0


class _Burst(NamedTuple):
    start: float
    height: float  # of the rate, above the base
    functions: tuple[int, ...]


def arrivals(shape: Shape) -> Iterator[Arrival]:
    """Poisson within each slot of constant rate."""
    rng = random.Random(shape.seed)
    bursts = _bursts(shape, rng)
    streams = [
        _stream(shape, number, bursts, random.Random(f"{shape.seed}/{number}"))
        for number in range(shape.functions)
    ]
    yield from merge(*streams, key=lambda arrival: arrival.at)


def rate(shape: Shape, at: float) -> float:
    """Requests a second of all functions together, as meant."""
    return shape.base + sum(_level(shape, burst, at) for burst in _bursts(shape, random.Random(shape.seed)))


def _bursts(shape: Shape, rng: random.Random) -> list[_Burst]:
    """Heights fall geometrically from the peak to a few times the base, so that most are small."""
    spacing = shape.seconds / shape.bursts
    heights = [
        shape.base * shape.peak * (4 / shape.peak) ** (n / max(1, shape.bursts - 1))
        for n in range(shape.bursts)
    ]
    rng.shuffle(heights)
    return [
        _Burst(
            spacing * (number + 0.1 + 0.3 * rng.random()),
            height,
            tuple(rng.sample(range(shape.functions), max(1, shape.functions * rng.randint(20, 60) // 100))),
        )
        for number, height in enumerate(heights)
    ]


def _level(shape: Shape, burst: _Burst, at: float) -> float:
    since = at - burst.start
    if since < 0:
        return 0.0
    if since < shape.rise_s:
        return burst.height * since / shape.rise_s
    if since < shape.rise_s + shape.hold_s:
        return burst.height
    left = shape.rise_s + shape.hold_s + shape.fall_s - since
    return burst.height * max(0.0, left) / shape.fall_s


def _stream(shape: Shape, number: int, bursts: Sequence[_Burst], rng: random.Random) -> Iterator[Arrival]:
    name = f"function-{number:04d}"
    mine = [burst for burst in bursts if number in burst.functions]
    slot = 0.0
    while slot < shape.seconds:
        middle = slot + SLOT_S / 2
        own = shape.base / shape.functions + sum(_level(shape, b, middle) / len(b.functions) for b in mine)
        at = slot + rng.expovariate(own)
        while at < min(slot + SLOT_S, shape.seconds):
            yield Arrival(at, name, seconds=rng.expovariate(1 / shape.work_s))
            at += rng.expovariate(own)
        slot += SLOT_S


class Facts(NamedTuple):
    """Of rates counted in windows of a minute."""

    peak_to_trough: float
    doublings: int  # within five minutes, each counted once
    without_rise: float  # share of windows that need no more instances than one of the five minutes before
    functions_in_peak: int


def facts(trace: Sequence[Arrival], window_s: float = 60.0) -> Facts:
    """What the trace is like, whoever made it. The last, incomplete window does not count."""
    count = int(trace[-1].at // window_s) if trace else 0
    if count < 2:
        raise ValueError(f"a trace of {count} windows of {window_s:g} s says nothing; at least 2")
    rates = [0] * count
    work = [0.0] * count
    busy: list[set[str]] = [set() for _ in range(count)]
    for arrival in trace:
        slot = int(arrival.at // window_s)
        if slot < count:
            rates[slot] += 1
            work[slot] += arrival.seconds or 1.0
            busy[slot].add(arrival.key)
    needed = [ceil(seconds / window_s) for seconds in work]  # instances that serve one request at a time
    back = max(1, int(WITHIN_S // window_s))
    doublings, since, rises = 0, 0, 0
    for now in range(1, count):
        before = rates[max(since, now - back) : now]
        if before and rates[now] >= 2 * max(1, min(before)):
            doublings, since = doublings + 1, now
        rises += needed[now] > max(needed[max(0, now - back) : now])
    peak = max(range(count), key=rates.__getitem__)
    return Facts(rates[peak] / max(1, min(rates)), doublings, 1 - rises / (count - 1), len(busy[peak]))
