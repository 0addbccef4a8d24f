"""What the original system's authors claim of their control plane, and what comes of it here: claim, ours, baseline.

Each function runs what it needs and returns the rows of one claim. A row where we are behind says so as plainly as
the others; nothing is left out. The published figures were measured on real nodes, these are simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from kserve_ext.sim import costs, elastic, probing, repartition
from kserve_ext.sim.fleet import World
from kserve_ext.sim.layout import ABLATIONS, Layout, of_each
from kserve_ext.sim.rows import Row, said_of
from kserve_ext.sim.runs import SYSTEMS, Result, ours, run
from kserve_ext.sim.workloads import EMULATED, SHARE_OF_FUNCTIONS, cold_starts, nearly_full

RATE: Final = 20_000.0  # instances a second that are claimed
COUNT: Final = 2_000
FEWER: Final = 800  # where several layouts of ours run
RATES: Final = (1000.0, 5000.0, 10_000.0, 20_000.0, 40_000.0)
SHARES: Final = (0.7, 0.9, 0.99)


def burst(
    name: str, rate: float, count: int, world: World, seed: int, layout: Layout | None = None
) -> Result:
    make = SYSTEMS[name] if layout is None else ours(layout, name)
    functions = max(1, count // SHARE_OF_FUNCTIONS)
    return run(make, cold_starts(rate, count, functions, seed), world, patience_s=20.0)


def tail(results: Sequence[Result], conditions: str) -> Iterator[Row]:
    """Of one workload: ours first."""
    mine, *others = results
    for other in others:
        yield Row(
            "tail scheduling latency 87.9-95.3 % lower",
            "p99 scheduling latency",
            mine.p99,
            other.p99,
            other.system,
            "s",
            "lower",
            conditions,
        )


def throughput(world: World, others: Sequence[str], seed: int) -> Iterator[Row]:
    """Instances ready a second when RATE are asked for, and how long a request waits then."""
    conditions = f"{said_of(world, seed)}; {COUNT} cold starts at {RATE:,.0f}/s"
    mine = burst("galaxy", RATE, COUNT, world, seed)
    yield Row(
        "up to 20,000 instances/s",
        "instances ready/s",
        mine.per_second,
        20_000.0,
        "published",
        "1/s",
        "higher",
        conditions,
    )
    for name in others:
        other = burst(name, RATE, COUNT, world, seed)
        yield Row(
            "throughput 1.2-29.3x",
            "instances ready/s",
            mine.per_second,
            other.per_second,
            name,
            "1/s",
            "higher",
            conditions,
        )
        yield Row(
            "tail scheduling latency 87.9-95.3 % lower",
            "p99 scheduling latency of cold starts",
            mine.p99,
            other.p99,
            name,
            "s",
            "lower",
            conditions,
        )


def connections(world: World, seed: int) -> Iterator[Row]:
    rate, count = 2000.0, FEWER
    conditions = f"{said_of(world, seed)}; {count} cold starts at {rate:,.0f}/s"
    g35 = burst("G_35", rate, count, world, seed)
    without = burst("G_35-C", rate, count, world, seed)
    yield Row(
        "connection cache cuts 38.7-78.7 % of overhead",
        "processor time of the control plane for each start",
        _core(g35),
        _core(without),
        "G_35-C",
        "us",
        "lower",
        conditions,
    )
    yield Row(
        "connection cache cuts 38.7-78.7 % of overhead",
        "processor time of calls for each start, what the cores do left out",
        _calls(g35),
        _calls(without),
        "G_35-C",
        "us",
        "lower",
        conditions,
    )
    yield Row(
        "connection cache cuts 38.7-78.7 % of overhead",
        "p50 scheduling latency beyond the start",
        g35.p50 - world.start_s,
        without.p50 - world.start_s,
        "G_35-C",
        "s",
        "lower",
        conditions,
    )


def growing(world: World, seed: int) -> Iterator[Row]:
    """One kind of function alone, from one of each; and both."""
    conditions = f"{said_of(world, seed)}; {FEWER} cold starts at {RATE:,.0f}/s; one of each kind otherwise"
    one = burst("G_1", RATE, FEWER, world, seed)
    for label, layout in (
        ("35 Dispatch functions", replace(of_each(1), dispatch=35)),
        ("35 Schedule functions", replace(of_each(1), schedule=35)),
        ("35 of each kind", of_each(35)),
    ):
        grown = burst(label, RATE, FEWER, world, seed, layout)
        yield Row(
            "growing one kind of function alone has limited effect",
            f"instances ready/s, {label}",
            grown.per_second,
            one.per_second,
            "G_1",
            "1/s",
            "higher",
            conditions,
        )


def load_range(world: World, others: Sequence[str], seed: int) -> Iterator[Row]:
    """Tail and throughput of cold starts at each of RATES."""
    for rate in RATES:
        count = int(min(COUNT, max(FEWER, rate * 0.1)))
        said = f"{said_of(world, seed)}; {count} cold starts at {rate:,.0f}/s"
        mine = burst("galaxy", rate, count, world, seed)
        for name in others:
            other = burst(name, rate, count, world, seed)
            metric = f"p99 scheduling latency at {rate:,.0f}/s"
            yield Row("load range", metric, mine.p99, other.p99, name, "s", "lower", said)
            metric = f"instances ready/s of {rate:,.0f}/s"
            yield Row("load range", metric, mine.per_second, other.per_second, name, "1/s", "higher", said)


def ablations(world: World, seed: int) -> Iterator[Row]:
    """Parts of the design, against G_1."""
    said = f"{said_of(world, seed)}; {FEWER} cold starts at {RATE:,.0f}/s"
    one = burst("G_1", RATE, FEWER, world, seed)
    for label, layout in ABLATIONS.items():
        found = burst(label, RATE, FEWER, world, seed, layout)
        yield Row(
            "ablation", f"p99 scheduling latency, {label}", found.p99, one.p99, "G_1", "s", "lower", said
        )
        metric = f"instances ready/s, {label}"
        yield Row("ablation", metric, found.per_second, one.per_second, "G_1", "1/s", "higher", said)


def full_clusters(world: World, others: Sequence[str], seed: int) -> Iterator[Row]:
    """Starts that nodes refuse (conflicts), those asked of others, and the tail, in clusters that are nearly full."""
    for share in SHARES:
        small, arrivals, filling = nearly_full(share, world, seed)
        conditions = (
            f"{said_of(small, seed)}; {small.room} places a node, {share:.0%} taken, "
            f"{len(arrivals) - filling} starts at 500/s"
        )
        mine = run(SYSTEMS["galaxy"], arrivals, small, 20.0, filling)
        figures: tuple[tuple[str, Callable[[Result], float], str], ...] = (
            (f"p99 scheduling latency, {share:.0%} full", lambda r: r.p99, "s"),
            (f"starts refused by nodes, {share:.0%} full", lambda r: r.refused_starts, ""),
            (
                f"starts asked of another partition, {share:.0%} full",
                lambda r: r.counts.get("borrowed", 0),
                "",
            ),
        )
        for name in others:
            other = run(SYSTEMS[name], arrivals, small, 20.0, filling)
            for metric, figure, unit in figures[:2]:
                yield Row(
                    "full clusters", metric, figure(mine), figure(other), name, unit, "lower", conditions
                )
        metric, figure, unit = figures[2]
        yield Row("full clusters", metric, figure(mine), None, "", unit, "lower", conditions)


def _core(result: Result) -> float | None:
    if result.control_core_s is None or not result.starts:
        return None
    return result.control_core_s / result.starts * 1e6


def _calls(result: Result) -> float:
    """Both ends' share of every message and connection; a hello is two messages more."""
    connections = result.counts.get("connections", 0)
    spent = (result.messages - 2 * connections) * 2 * costs.RPC + connections * 2 * costs.CONNECT
    return spent / result.starts


def all_claims(others: Sequence[str], world: World, seed: int) -> list[Row]:
    """On emulated starts, with these nodes."""
    emulated = replace(EMULATED, nodes=world.nodes, hop_s=world.hop_s, seed=seed)
    return [
        *throughput(emulated, others, seed),
        *connections(emulated, seed),
        *probing.rows(emulated, seed),
        *growing(emulated, seed),
        *repartition.rows(emulated, seed),
        *elastic.rows(world, seed),
    ]
