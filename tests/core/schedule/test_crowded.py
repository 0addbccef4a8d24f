"""A partition that stays 99 % full while instances end and others come: with the line, and by asking again alone."""

from __future__ import annotations

import random
from typing import NamedTuple

from kserve_ext.core.facts import Resources
from tests.core.schedule.full_cluster import FullCluster


class Measured(NamedTuple):
    longest_s: float  # wait from the first refusal to the placement, or to the end of the measurement
    overtaken: int  # placements of those who came later than one who still waited, and needs as much
    idle_s: float  # seconds that a slot was free while somebody waited, of all slots


def measure(seed: int, *, line: bool, seconds: int = 60) -> Measured:
    """50 slots; every second one instance ends, and half a second later another service comes: ten always wait."""
    cluster = FullCluster({"s0": [Resources(5000, 64_000)] * 10}, seed, line=line)
    rng = random.Random(seed)
    for k in range(60):
        cluster.want(f"ns/m{k}", 1000)
    cluster.run(1.0)
    came = dict.fromkeys(cluster.homes, cluster.now)
    longest, overtaken, idle = 0.0, 0, 0.0
    for k in range(seconds):
        running = sorted(name for name in cluster.homes if cluster.count(name))
        gone = rng.choice(running)
        cluster.homes[gone].wanted = 0
        cluster.end(gone)
        name = f"ns/n{k}"
        before = {n for n, h in cluster.homes.items() if h.wanted and not cluster.count(n)}
        for step in range(10):
            if step == 5:
                cluster.want(name, 1000)
                came[name] = cluster.now
            cluster.run(0.1)
            waiting = {n for n, h in cluster.homes.items() if h.wanted and not cluster.count(n)}
            free = sum(n.free.cpu_milli for n in cluster.nodes.values()) // 1000
            idle += 0.1 * min(free, len(waiting))
            placed = before - waiting
            overtaken += sum(any(came[w] < came[p] for w in waiting) for p in placed)
            longest = max([longest, *(cluster.now - came[n] for n in placed)])
            before = waiting
    longest = max([longest, *(cluster.now - came[n] for n in before)])
    return Measured(round(longest, 1), overtaken, round(idle, 1))


def test_at_99_percent_nobody_is_overtaken_and_no_slot_stays_empty() -> None:
    with_line, alone = measure(1, line=True), measure(1, line=False)
    assert with_line.overtaken == 0
    assert alone.overtaken > 20, "by asking again whoever happens to ask first gets it"
    assert with_line.longest_s < alone.longest_s / 2
    assert with_line.idle_s < alone.idle_s


if __name__ == "__main__":
    for way in (True, False):
        print("with the line" if way else "asking again", measure(1, line=way), measure(2, line=way))
