"""`python -m tests.chaos --seconds 120 --seed 7`: a run with faults, and whether any invariant was broken.

Prints the schedule, then each fault as it comes, then the violations with the events that show them; exit code 1 if
there are any. See docs/chaos.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from math import inf
from pathlib import Path

from tests.chaos import checker, faults
from tests.chaos.cluster import Shape
from tests.chaos.digest import Limits
from tests.chaos.history import load
from tests.chaos.network import Network, possible
from tests.chaos.plans import FULL, SCRIPTS, SHAPES, STORIES, full
from tests.chaos.planted import BUGS
from tests.chaos.run import Run, began_of
from tests.chaos.statestore import why_not

MOST_SHOWN = 12


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=_seconds, default=120.0, help="of load and faults (120)")
    parser.add_argument("--seed", type=int, help="of the schedule and the load; default: a new one, printed")
    parser.add_argument("--schedule", type=_there, help="faults from this file instead of the seed's own")
    parser.add_argument(
        "--bug",
        choices=BUGS,
        default="",
        metavar="BUG",
        help="plant this bug first: see tests/chaos/planted.py",
    )
    parser.add_argument(
        "--script",
        choices=SCRIPTS | STORIES,
        default="",
        metavar="SCRIPT",
        help="a short plan: see SCRIPTS and STORIES in tests/chaos/plans.py",
    )
    parser.add_argument("--cluster", choices=SHAPES, help="default: by the seed")
    parser.add_argument("--no-cut", action="store_true", help="no network namespaces (they need root)")
    parser.add_argument("--keep", type=Path, help="keep histories and logs in this folder")
    parser.add_argument("--check", type=_there, help="only check the history in this folder")
    args = parser.parse_args(argv)
    if args.check:
        return judge(args.check, FULL.limits)
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 31)
    plan = (SCRIPTS | STORIES)[args.script] if args.script else FULL
    if args.schedule:
        schedule = faults.read(args.schedule.read_text())
    elif args.script:
        schedule = faults.Schedule(seed, plan.seconds, plan.faults)
    else:
        cut = possible() and not args.no_cut
        cluster = args.cluster or drawn(seed)
        shape = SHAPES[cluster]
        # a function that a node starts listens where the controller does; one that is apart, on the loopback
        cut = cut and not (shape.elastic or shape.apart)
        schedule = faults.make(seed, args.seconds, shape.targets, cut=cut, cluster=cluster)
    if not args.script:
        plan = full(schedule.cluster)
    if args.schedule and args.seed is not None:
        schedule = schedule._replace(seed=seed)
    again = f"--script {args.script}" if args.script else f"--seconds {schedule.seconds:g}"
    again += f" --seed {schedule.seed}" + ("" if args.script else f" --cluster {schedule.cluster}")
    print(f"seed {schedule.seed}; to run it again: python -m tests.chaos {again}")
    print(schedule.text(), end="", flush=True)
    folder = args.keep or Path(tempfile.mkdtemp(prefix="galaxy-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "schedule").write_text(schedule.text())
    with network_for(schedule, plan.shape) as network:
        run = Run(folder, schedule, plan, lambda text: print(text, flush=True), args.bug, network)
        asyncio.run(run.go())
    code = judge(folder / "history", plan.limits)
    if code or args.keep:
        print(f"histories, logs and the schedule are in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return code


def drawn(seed: int) -> str:
    """Which cluster a seed has; where no Redis can be had, one that needs none."""
    cluster = random.Random(f"cluster {seed}").choice(sorted(SHAPES))
    if SHAPES[cluster].controllers > 1 and (why := why_not()):
        print(f"no cluster {cluster}, but a plain one: {why}")
        return "plain"
    return cluster


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < inf:
        raise argparse.ArgumentTypeError(f"{text}: write a number above 0, e.g. 120")
    return seconds


def _there(text: str) -> Path:
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(
            f"{text} is not there; runs that break nothing keep only --keep FOLDER"
        )
    return Path(text)


@contextlib.contextmanager
def network_for(schedule: faults.Schedule, shape: Shape) -> Iterator[Network | None]:
    """Namespaces, where the schedule cuts nodes off."""
    if not any(fault.kind == "cut" for fault in schedule.faults):
        yield None
        return
    network = Network([part for part in shape.ids if part.startswith("node")])
    network.open()
    try:
        yield network
    finally:
        network.close()


def judge(history: Path, limits: Limits) -> int:
    began = time.monotonic()
    events = load(history)
    if not events:
        print(
            f"{history} has no history: name the folder with NAME.PID.jsonl, FOLDER/history", file=sys.stderr
        )
        return 2
    found = checker.check(events, limits)
    requests = Counter(str(e["status"] or e["outcome"]) for e in events if e.what == "request")
    faults_ = Counter(e["kind"] for e in events if e.what == "fault")
    instances = sum(e.what == "began" for e in events)
    print(
        f"{len(events)} events; requests {dict(sorted(requests.items()))}; {instances} instances; "
        f"faults {dict(sorted(faults_.items()))}; checked in {time.monotonic() - began:.1f} s"
    )
    for violation in found[:MOST_SHOWN]:
        print(checker.text(violation, began_of(events)))
    by_kind = Counter(v.invariant for v in found)
    print(f"VIOLATIONS: {dict(by_kind)}" if found else "no invariant was broken")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
