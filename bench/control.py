"""The control plane, side by side (`make bench-control`): decisions, tails against every rival, faults and recovery.

One run: the real cores in virtual time beside the designs that they replace (*simulated*: the same seed is the same
figures), the cores alone on this machine, and processes that talk over sockets (*measured*). What is simulated is
recorded in results/simulate.jsonl, the rest in control.jsonl. `--simulated` leaves out what is measured: it needs no
quiet machine. `--only NAME` runs some of it, and records nothing. `--calibrate` runs ours under a stopwatch instead,
and prints what kserve_ext/sim/costs.py keeps: the processor time that the real cores took here for one message of
each kind. `--stages` prints what the latency of cold starts consists of, stage by stage.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any, Final

from bench import cores, quiet
from bench.record import ROOT, machine, record
from kserve_ext.sim import bursts, claims, elastic, probing, recovery, repartition, scale, stages
from kserve_ext.sim.fleet import World
from kserve_ext.sim.rows import Row, said_of
from kserve_ext.sim.runs import COMPARED, PAID, SYSTEMS, run, stopwatch
from kserve_ext.sim.workloads import EMULATED, SHARE_OF_FUNCTIONS, cold_starts

TRACE: Final = bursts.Shape(seconds=600.0, bursts=4)
OTHERS: Final = tuple(name for name in COMPARED if name != "galaxy")
SOCKETS: Final = ROOT / "bench" / "control_sockets.py"

Section = Callable[[World, World, int], Iterable[Row]]


def trace(world: World, emulated: World, seed: int) -> list[Row]:
    """Bursts as users describe theirs, on starts as they are."""
    arrivals = list(bursts.arrivals(replace(TRACE, seed=seed)))
    results = [run(SYSTEMS[name], arrivals, world) for name in COMPARED]
    said = f"{said_of(world, seed)}; synthetic bursts of {TRACE.seconds:g} s, {len(arrivals)} requests"
    return list(claims.tail(results, said))


#: all of it that is simulated, the longest first
SECTIONS: Final[dict[str, Section]] = {
    "elastic": lambda world, emulated, seed: elastic.rows(world, seed),
    "trace": trace,
    "load": lambda world, emulated, seed: claims.load_range(
        emulated, (*OTHERS, "central-at-once", *PAID), seed
    ),
    "large": lambda world, emulated, seed: scale.large(emulated, seed, claims.RATE, claims.COUNT),
    "recovery": lambda world, emulated, seed: recovery.rows(emulated, seed),
    "busy": lambda world, emulated, seed: scale.loaded(emulated, seed),
    "repartition": lambda world, emulated, seed: repartition.rows(emulated, seed),
    "full": lambda world, emulated, seed: claims.full_clusters(world, OTHERS, seed),
    "probes": lambda world, emulated, seed: probing.rows(emulated, seed),
    "throughput": lambda world, emulated, seed: claims.throughput(emulated, OTHERS, seed),
    "idle": lambda world, emulated, seed: scale.idle(emulated, seed),
    "starts": lambda world, emulated, seed: scale.starting(emulated, seed),
    "growing": lambda world, emulated, seed: claims.growing(emulated, seed),
    "ablations": lambda world, emulated, seed: claims.ablations(emulated, seed),
    "connections": lambda world, emulated, seed: claims.connections(emulated, seed),
}
#: what is measured, in this order
MEASURED: Final = ("cores", "sockets")


def section(name: str, seed: int) -> tuple[list[Row], float]:
    """Its rows, and the processor time that they took. Runs in a process of its own."""
    began = time.process_time()
    world, emulated = World(seed=seed), replace(EMULATED, seed=seed)
    return list(SECTIONS[name](world, emulated, seed)), time.process_time() - began


def simulated(names: Sequence[str], seed: int, jobs: int | None) -> list[Row]:
    """As many at once as there are processors, or `jobs`; the rows in the order of `names`."""
    found: list[Row] = []
    with ProcessPoolExecutor(jobs or os.cpu_count()) as pool:
        for name, (rows, seconds) in zip(names, pool.map(section, names, [seed] * len(names)), strict=True):
            print(f"# {name}: {len(rows)} rows in {seconds:.0f} s of processor time", flush=True)
            found += rows
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


def calibrate(rounds: int, schedulers: int) -> Mapping[str, float]:
    """Microseconds by kind: the least mean of the rounds, which had the processor most to itself.

    Without a probe cache only what isn't met with one.
    """
    found: dict[bool, dict[str, float]] = {True: {}, False: {}}
    for probe_cache in [True] * rounds + [False] * rounds:
        gc.collect()
        gc.disable()
        taken = stopwatch(schedulers, probe_cache=probe_cache)
        gc.enable()
        least = found[probe_cache]
        for kind, (times, seconds) in taken.items():
            least[kind] = min(least.get(kind, 1e9), seconds / times * 1e6)
    return found[False] | found[True]


def main() -> int:
    names = (*MEASURED, *SECTIONS)
    parser = argparse.ArgumentParser(prog="python -m bench.control", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=names, help="nothing is recorded then")
    parser.add_argument("--simulated", action="store_true", help="leave out what is measured")
    parser.add_argument(
        "--jobs", type=int, help="sections at once that are simulated (as many as processors)"
    )
    parser.add_argument("--calibrate", action="store_true", help="measure what costs.py keeps")
    parser.add_argument("--stages", action="store_true", help="where the time of cold starts goes")
    parser.add_argument("--rounds", type=int, default=3, help="of the calibration")
    parser.add_argument("--schedulers", type=int, default=35, help="of the calibration: Schedule functions")
    args = parser.parse_args()
    if args.stages:
        world, rate = replace(EMULATED, seed=args.seed), claims.RATE
        functions = claims.COUNT // SHARE_OF_FUNCTIONS
        print(f"# {said_of(world, args.seed)}; {claims.COUNT} cold starts at {rate:,.0f}/s")
        arrivals = cold_starts(rate, claims.COUNT, functions, args.seed)
        print("\n".join(stages.table(stages.paths(SYSTEMS["galaxy"], arrivals, world))))
        return 0
    if args.calibrate:
        print(f"# {machine()}; {args.schedulers} Schedule functions")
        for kind, microseconds in sorted(calibrate(args.rounds, args.schedulers).items()):
            print(f'    "{kind}": {microseconds:.1f},')
        return 0
    wanted = args.only or (SECTIONS if args.simulated else names)
    began, before, load = time.monotonic(), quiet.usage(), os.getloadavg()[0]
    rows = list(cores.rows()) if "cores" in wanted else []
    if "sockets" in wanted and SOCKETS.exists():  # it records its own rows
        subprocess.run([sys.executable, "-m", "bench.control_sockets"], check=True, cwd=ROOT)
    verdict = quiet.judge(before, quiet.usage(), time.monotonic() - began, os.cpu_count() or 1, load)
    refused = "only a part was asked for" if args.only else ""
    if rows:
        print(f"# measured rows: {verdict.text}")
        record("control", rows, refused=refused or verdict.refused)
    # What is simulated is the same on any machine.
    found = simulated([name for name in SECTIONS if name in wanted], args.seed, args.jobs)
    record("simulate", recorded(found), refused=refused)
    print(f"# all of it took {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
