"""Workloads beside traces: bursts of cold starts at a rate, and a cluster that is nearly full.

For them nodes start instances in no time to speak of (EMULATED), as in the published figures of so many instances a
second: what is measured is the control plane, not a container runtime.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import repeat
from math import floor
from typing import Final

from kserve_ext.sim.fleet import World
from kserve_ext.sim.traces import Arrival

EMULATED: Final = World(nodes=210, room=1000, start_s=0.02, parallel_starts=100)
FOREVER_S: Final = 1e6
SHARE_OF_FUNCTIONS: Final = 5  # requests that each function gets in a burst


def cold_starts(rate: float, count: int, functions: int, seed: int, at: float = 1.0) -> list[Arrival]:
    """Requests so long that each needs an instance of its own."""
    rng = random.Random(seed)
    out: list[Arrival] = []
    for _ in range(count):
        at += rng.expovariate(rate)
        out.append(Arrival(at, f"f{rng.randrange(functions)}", seconds=FOREVER_S))
    return out


def nearly_full(share: float, world: World, seed: int) -> tuple[World, list[Arrival], int]:
    """The nodes, all arrivals, and how many of them fill the cluster to `share` before it is measured.

    What is measured are starts at 500 a second, as many as fit, 200 at most.
    """
    small = replace(world, room=8, start_s=0.02, parallel_starts=100)
    places = small.nodes * small.room
    filling = floor(places * share)
    arrivals = cold_starts(1000.0, filling, max(1, filling // 20), seed)
    measured = min(200, places - filling)
    after = arrivals[-1].at + 5.0
    late = cold_starts(500.0, measured, max(1, measured // SHARE_OF_FUNCTIONS), seed + 1, after)
    return small, [*arrivals, *(replace(a, key=f"late-{a.key}") for a in late)], filling


def scaled(trace: Iterable[Arrival], load: float, seed: int) -> Iterator[Arrival]:
    """The same trace with `load` times the requests: each is repeated, or left out, by the seed."""
    rng = random.Random(f"load/{seed}")
    for arrival in trace:
        copies = floor(load) + (rng.random() < load % 1.0)
        yield from repeat(arrival, copies)
