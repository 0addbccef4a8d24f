"""Revisions woken from zero, 1, 25 and 100 at once: stock Knative beside ours in one stack (`make bench-from-zero`).

Plain scale: a request to the activator, its report to the autoscaler, a patch of the Deployment, a pod, an answer.
The stack is the e2e suite's: the real API server, controllers, scheduler, kube-proxy and Knative's controller; the
activator's and autoscaler's images are swapped between bursts, rounds are interleaved. Pods are light (bench/peers/
light_node.py) unless asked for real ones, which are bounded by how fast this machine starts processes.
Printed besides: when each step of the starts was seen, and whose CPU time they took; with --requests also who asked
the API server for what.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from bench import api_requests, quiet, waking
from bench.processes import of_stack
from bench.record import record
from bench.waking import STEPS, Burst, Observer, fire, percentile, read_logs
from bench.zero_stack import SPARE, activator_of, cpu_by_program, name_of, prepare, use
from e2e.stack import cluster, watch
from e2e.stack.cluster import Cluster

ZERO_S = 300.0
#: After the last pod has gone or an implementation has been swapped, for what is still written then.
SETTLE_S = 5.0
#: Alone: so many bursts of one each time.
SINGLES = 5
#: Name -> (activator, autoscaler).
IMPLEMENTATIONS = {
    "stock": ("stock", "stock"),
    "ours": ("ours", "ours"),
    "our activator": ("ours", "stock"),
    "our autoscaler": ("stock", "ours"),
}


class Figures(NamedTuple):
    """Of all bursts of one size with one implementation."""

    bursts: list[Burst]
    #: Program -> CPU microseconds.
    cpu: Counter[str]
    requests: list[api_requests.Request]


Found = dict[tuple[str, int], Figures]  # (implementation, revisions at once)


async def one_burst(stack: Cluster, observer: Observer, names: Sequence[str], figures: Figures) -> Burst:
    """Fires when all are at zero; adds what was found to the figures."""
    revisions = [f"{name}-00001" for name in names]
    await observer.wait_zero(revisions, ZERO_S)
    await asyncio.sleep(SETTLE_S)
    activator = activator_of(stack)
    before = cpu_by_program(stack.place)
    burst = await fire(observer, revisions, activator)
    figures.cpu.update(cpu_by_program(stack.place) - before)
    read_logs(stack.place.logs, burst)
    figures.requests.extend(api_requests.read(stack.place, min(burst.asked.values())))
    figures.bursts.append(burst)
    return burst


async def measure(stack: Cluster, args: argparse.Namespace) -> Found:
    found: Found = {}
    sizes = [int(size) for size in args.sizes.split(",")]
    chosen = args.impl.split(",")
    observer = Observer()
    async with watch.session(stack.place) as client:
        following = asyncio.create_task(observer.follow(client))
        for number in range(args.rounds):
            first = number % len(chosen)
            for implementation in [*chosen[first:], *chosen[:first]]:
                await asyncio.to_thread(use, stack, *IMPLEMENTATIONS[implementation])
                # Leases taken, websocket open, paths warm.
                spare = await one_burst(stack, observer, [SPARE], Figures([], Counter(), []))
                if spare.outcomes != {"200": 1}:
                    raise SystemExit(f"{implementation} does not wake {SPARE}: {dict(spare.outcomes)}")
                for size in sizes:
                    figures = found.setdefault((implementation, size), Figures([], Counter(), []))
                    groups = [range(i, i + 1) for i in range(SINGLES)] if size == 1 else [range(size)]
                    for group in groups:
                        burst = await one_burst(stack, observer, [name_of(i) for i in group], figures)
                        show(number, implementation, size, burst)
        following.cancel()
    return found


def show(number: int, implementation: str, size: int, burst: Burst) -> None:
    answers = burst.answers_s()
    if answers:
        steps = "  ".join(
            f"{step} {statistics.median(times):.2f}" for step in STEPS if (times := burst.steps_s(step))
        )
        text = f"p50 {percentile(answers, 0.5):6.2f} s  p99 {percentile(answers, 0.99):6.2f} s  (medians: {steps})"
    else:
        text = "no answers"
    print(
        f"round {number + 1}  {implementation:14} {size:3} at once  {text}  {dict(burst.outcomes)}",
        flush=True,
    )


def rows_of(found: Found, conditions: str) -> list[dict[str, Any]]:
    """Ours and its halves beside stock: of each size p50 and p99 over all answers, and the pace of a burst."""
    rows = []
    for (implementation, size), figures in found.items():
        stock = found.get(("stock", size))
        if implementation == "stock" or stock is None:
            continue
        mine, theirs = (sorted(s for b in f.bursts for s in b.answers_s()) for f in (figures, stock))
        what = "" if implementation == "ours" else f" ({implementation} alone)"
        fields = [
            ("request to answer, p50", percentile(mine, 0.5), percentile(theirs, 0.5), "s", "lower"),
            ("request to answer, p99", percentile(mine, 0.99), percentile(theirs, 0.99), "s", "lower"),
        ]
        if size > 1:
            pace = [statistics.median(size / b.all_s() for b in f.bursts) for f in (figures, stock)]
            fields.append(("answered per second", pace[0], pace[1], "revisions/s", "higher"))
        rows += [
            {
                "metric": f"{size} at once from zero: {label}{what}",
                "ours": round(ours, 3),
                "peer": round(peer, 3),
                "peer_name": "stock Knative",
                "unit": unit,
                "better": better,
                "conditions": conditions,
            }
            for label, ours, peer, unit, better in fields
        ]
    return rows


def explain(found: Found) -> None:
    """Where the time and the CPU went."""
    for (implementation, size), figures in found.items():
        waking.explain(f"{implementation}, {size} at once", figures.bursts, figures.cpu)
        if figures.requests:
            starts = sum(len(burst.asked) for burst in figures.bursts)
            print(f"  requests to the API server per revision: {len(figures.requests) / starts:.1f}")
            print(*api_requests.table(figures.requests, starts), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", default="1,25,100", help="revisions at once")
    parser.add_argument("--impl", default="stock,ours", help=f"of {', '.join(IMPLEMENTATIONS)}")
    parser.add_argument("--pods", choices=("light", "real"), default="light")
    parser.add_argument("--requests", action="store_true", help="print the API server's, record nothing")
    args = parser.parse_args()
    if unknown := set(args.impl.split(",")) - IMPLEMENTATIONS.keys():
        parser.error(f"unknown: {', '.join(unknown)}")
    sizes = [int(size) for size in args.sizes.split(",")]
    observed = quiet.Watch()
    stack = cluster.up(api_flags=api_requests.flags if args.requests else lambda place: ())
    try:
        began = time.monotonic()
        prepare(stack, max(SINGLES, *sizes), args.pods == "light")
        print(f"{max(sizes)} Services ready after {time.monotonic() - began:.0f} s", flush=True)
        found = asyncio.run(measure(stack, args))
    finally:
        cluster.down(stack.place)
        for pid in of_stack(stack.place.folder):
            os.kill(pid, signal.SIGKILL)
    verdict = observed.verdict()
    outcomes = sum((b.outcomes for f in found.values() for b in f.bursts), Counter[str]())
    failed = outcomes.total() - outcomes["200"]
    conditions = (
        f"one stack on {os.cpu_count()} cores with all its parts, {args.pods} pods, window 6 s; "
        f"{args.rounds} interleaved rounds, {SINGLES} single starts in each; {verdict.text}"
    )
    explain(found)
    refused = f"{failed} requests were not answered with 200" if failed else verdict.refused
    refused = refused or ("the API server wrote a log besides" if args.requests else "")
    record("from_zero", rows_of(found, conditions), refused=refused)


if __name__ == "__main__":
    main()
