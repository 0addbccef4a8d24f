"""Bursts from zero onto standby pods: Knative as shipped and without its limits, ours without and with standby.

`make bench-burst`: one stack (real API server, controllers, scheduler, Knative's controller), light pods, the same
Services for all. A standby pod knows no revision before its request; then a process of its own loads the revision's
model, a file that no other has, and the answer is the file's SHA-256: that is checked. Without standby our agents are
not there, so that every start misses. Its pods are of level S0. Those of level S2 have no part in this: their engines
have loaded their models before any request, which is what they are for.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import shutil
import signal
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import quiet, waking
from bench.processes import of_stack
from bench.record import record
from bench.standby_stack import IMPLEMENTATIONS, POOL_S, Setting
from bench.waking import Burst, Observer, percentile
from bench.zero_stack import SPARE, activator_of, cpu_by_program, name_of, prepare
from e2e.stack import cluster, watch
from e2e.stack.cluster import Cluster

ZERO_S = 400.0
SETTLE_S = 3.0
CATCH_UP_S = 180.0
#: Alone: so many bursts of one each time.
SINGLES = 5


class Figures(NamedTuple):
    bursts: list[Burst]
    cpu: Counter[str]


Found = dict[tuple[str, int], Figures]  # (implementation, revisions at once)


class Models:
    """A file for each Service, and what it hashes to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.digests: dict[str, str] = {}

    def make(self, name: str) -> Path:
        path = self._folder / f"{name}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = hashlib.shake_256(name.encode()).digest(1 << 16)
        path.write_bytes(content)
        self.digests[f"{name}-00001"] = hashlib.sha256(content).hexdigest()
        return path


def hits(burst: Burst, digests: Mapping[str, str]) -> int:
    """Answers from standby pods. Raises if one answered from another's model."""
    plain = sum(body == "hello" for body in burst.bodies.values())
    wrong = [r for r, body in burst.bodies.items() if body != "hello" and body != digests[r]]
    if wrong:
        raise SystemExit(f"answered from another model: {', '.join(sorted(wrong))}")
    return len(burst.bodies) - plain


async def one_burst(stack: Cluster, observer: Observer, names: Sequence[str], figures: Figures) -> Burst:
    revisions = [f"{name}-00001" for name in names]
    await observer.wait_zero(revisions, ZERO_S)
    await asyncio.sleep(SETTLE_S)
    before = cpu_by_program(stack.place)
    burst = await waking.fire(observer, revisions, activator_of(stack), catch_up_s=CATCH_UP_S)
    figures.cpu.update(cpu_by_program(stack.place) - before)
    figures.bursts.append(burst)
    return burst


def counted(setting: Setting, before: Mapping[str, float]) -> str:
    """What its autoscaler has counted of standby pods since then."""
    now = setting.counters()
    since = {name: count - before.get(name, 0.0) for name, count in now.items()}
    return ", ".join(f"{name} {count:.0f}" for name, count in sorted(since.items()) if count)


async def measure(stack: Cluster, setting: Setting, models: Models, args: argparse.Namespace) -> Found:
    found: Found = {}
    sizes = [int(size) for size in args.sizes.split(",")]
    chosen = args.impl.split(",")
    observer = Observer()
    async with watch.session(stack.place) as client:
        following = asyncio.create_task(observer.follow(client))
        for number in range(args.rounds):
            first = number % len(chosen)
            for name in [*chosen[first:], *chosen[:first]]:
                await asyncio.to_thread(setting.use, name)
                spare = await one_burst(stack, observer, [SPARE], Figures([], Counter()))
                if spare.outcomes != {"200": 1}:
                    raise SystemExit(f"{name} does not wake {SPARE}: {dict(spare.outcomes)}")
                for size in sizes:
                    figures = found.setdefault((name, size), Figures([], Counter()))
                    groups = [range(i, i + 1) for i in range(SINGLES)] if size == 1 else [range(size)]
                    for group in groups:
                        await asyncio.to_thread(setting.wait_standing_by, max(sizes), POOL_S)
                        before = await asyncio.to_thread(setting.counters)
                        burst = await one_burst(stack, observer, [name_of(i) for i in group], figures)
                        show(number, name, size, burst, hits(burst, models.digests))
                        if said := await asyncio.to_thread(counted, setting, before):
                            print(f"  standby pods: {said}", flush=True)
        following.cancel()
    return found


def show(number: int, implementation: str, size: int, burst: Burst, standby: int) -> None:
    answers = burst.answers_s()
    text = "no answers"
    if answers:
        late = burst.steps_s("endpoint")
        text = (
            f"p50 {percentile(answers, 0.5):7.3f} s  p99 {percentile(answers, 0.99):7.3f} s  "
            f"{len(answers) / burst.all_s():6.1f}/s  standby {standby}  "
            f"objects caught up after {max(late, default=0.0):.1f} s ({len(late)} of {len(answers)})"
        )
    print(
        f"round {number + 1}  {implementation:14} {size:3} at once  {text}  {dict(burst.outcomes)}",
        flush=True,
    )


def rows_of(found: Found, conditions: str) -> list[dict[str, Any]]:
    """Ours, without and with standby, beside Knative as shipped and without limits."""
    rows = []
    for (mine, size), figures in found.items():
        if not mine.startswith("ours"):
            continue
        for peer_name in ("shipped", "unlimited"):
            peer = found.get((peer_name, size))
            if peer is None:
                continue
            ours_s, peer_s = (sorted(s for b in f.bursts for s in b.answers_s()) for f in (figures, peer))
            fields = [
                (
                    "request to first byte, p50",
                    percentile(ours_s, 0.5),
                    percentile(peer_s, 0.5),
                    "s",
                    "lower",
                ),
                (
                    "request to first byte, p99",
                    percentile(ours_s, 0.99),
                    percentile(peer_s, 0.99),
                    "s",
                    "lower",
                ),
            ]
            if size > 1:
                pace = [statistics.median(size / b.all_s() for b in f.bursts) for f in (figures, peer)]
                fields.append(("ready per second", pace[0], pace[1], "revisions/s", "higher"))
            cpu = [f.cpu.total() / sum(len(b.asked) for b in f.bursts) / 1000 for f in (figures, peer)]
            fields.append(("CPU until objects have caught up", cpu[0], cpu[1], "ms/revision", "lower"))
            rows += [
                {
                    "metric": f"{size} at once from zero, {mine}: {label}",
                    "ours": round(value, 3),
                    "peer": round(other, 3),
                    "peer_name": f"Knative {peer_name}",
                    "unit": unit,
                    "better": better,
                    "conditions": conditions,
                }
                for label, value, other, unit, better in fields
            ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sizes", default="1,25,100,400", help="revisions at once")
    parser.add_argument("--logs", type=Path, help="folder to which the stack's logs are copied in the end")
    parser.add_argument("--impl", default=",".join(IMPLEMENTATIONS), help=f"of {', '.join(IMPLEMENTATIONS)}")
    args = parser.parse_args()
    if unknown := set(args.impl.split(",")) - set(IMPLEMENTATIONS):
        parser.error(f"unknown: {', '.join(unknown)}")
    most = max(SINGLES, *(int(size) for size in args.sizes.split(",")))
    observed = quiet.Watch()
    stack = cluster.up()
    try:
        began = time.monotonic()
        models = Models(stack.place.folder / "models")
        setting = Setting(stack)
        prepare(stack, most, True, setting.marking(models.make, most))
        print(f"{most} Services ready after {time.monotonic() - began:.0f} s", flush=True)
        found = asyncio.run(measure(stack, setting, models, args))
    finally:
        if args.logs is not None:
            shutil.copytree(stack.place.logs, args.logs, dirs_exist_ok=True)
        cluster.down(stack.place)
        for pid in of_stack(stack.place.folder):
            os.kill(pid, signal.SIGKILL)
    verdict = observed.verdict()
    outcomes = sum((b.outcomes for f in found.values() for b in f.bursts), Counter[str]())
    failed = outcomes.total() - outcomes["200"]
    with_standby = [f for (name, _), f in found.items() if name == "ours-standby"]
    standby = sum(hits(b, models.digests) for f in with_standby for b in f.bursts)
    of = sum(len(b.bodies) for f in with_standby for b in f.bursts)
    conditions = (
        f"one stack on {os.cpu_count()} cores with all its parts, light pods, window 6 s; {args.rounds} rounds, "
        f"{SINGLES} single starts in each; {standby} of {of} starts with standby (S0, no model loaded before) were "
        f"hits; {verdict.text}"
    )
    for (implementation, size), figures in found.items():
        waking.explain(f"{implementation}, {size} at once", figures.bursts, figures.cpu)
    refused = f"{failed} requests were not answered with 200" if failed else verdict.refused
    record("burst", rows_of(found, conditions), refused=refused)


if __name__ == "__main__":
    main()
