"""The control planes in virtual time, side by side (`make bench-simulate`); every row is simulated, and says so.

`--calibrate` runs ours under a stopwatch instead, and prints what kserve_ext/sim/costs.py keeps: the processor time
that the real cores took here for one message of each kind.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from typing import Any

from bench.record import machine, record
from kserve_ext.sim import bursts, claims
from kserve_ext.sim.fleet import World
from kserve_ext.sim.rows import Row, said_of
from kserve_ext.sim.runs import COMPARED, SYSTEMS, run, stopwatch

TRACE = bursts.Shape(seconds=600.0, bursts=4)


def calibrate(rounds: int) -> dict[str, float]:
    """Microseconds by kind: the least mean of the rounds, which had the processor most to itself."""
    found: dict[str, float] = {}
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        taken = stopwatch()
        gc.enable()
        for kind, (times, seconds) in taken.items():
            found[kind] = min(found.get(kind, 1e9), seconds / times * 1e6)
    return found


def rows(seed: int, quick: bool) -> list[Row]:
    world, others = World(seed=seed), [name for name in COMPARED if name != "galaxy"]
    shape = bursts.Shape(seconds=60.0, bursts=1, functions=20, seed=seed) if quick else TRACE
    trace = list(bursts.arrivals(shape))
    results = [run(SYSTEMS[name], trace, world) for name in COMPARED]
    said = f"{said_of(world, seed)}; synthetic bursts of {shape.seconds:g} s, {len(trace)} requests"
    found = list(claims.tail(results, said))
    if not quick:
        found += claims.all_claims(others, world, seed)
        found += claims.full_clusters(world, others, seed)
    return found


def recorded(found: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {
            "metric": f"{row.claim}: {row.metric}",
            "ours": None if row.ours is None else float(f"{row.ours:.6g}"),
            "peer": None if row.baseline is None else float(f"{row.baseline:.6g}"),
            "peer_name": row.baseline_name or None,
            "unit": row.unit,
            "better": row.better,
            "conditions": row.conditions,
        }
        for row in found
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.simulate", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="only a short trace; nothing is recorded")
    parser.add_argument("--calibrate", action="store_true", help="measure what costs.py keeps")
    parser.add_argument("--rounds", type=int, default=3, help="of the calibration")
    args = parser.parse_args()
    if args.calibrate:
        print(f"# {machine()}")
        for kind, microseconds in sorted(calibrate(args.rounds).items()):
            print(f'    "{kind}": {microseconds:.1f},')
        return 0
    refused = "it was quick" if args.quick else ""
    record("simulate", recorded(rows(args.seed, args.quick)), refused=refused)
    return 0


if __name__ == "__main__":
    sys.exit(main())
