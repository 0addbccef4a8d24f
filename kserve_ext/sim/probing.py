"""What kept answers save, and where asking loses: the same starts decided by all statuses, by asking, by the cache.

Three ways, by the real cores. *told*: ClusterMgr functions tell of every change, nobody is asked; the rule. *asking*:
nobody tells, and each decision asks three nodes first. *cache*: nobody tells, and answers are used again. Quality is
equal when the tail and the starts that nodes refuse are within 2 % at the same seed; the rows show both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from kserve_ext.sim.fleet import World
from kserve_ext.sim.layout import FULL, Layout
from kserve_ext.sim.rows import Row, said_of
from kserve_ext.sim.runs import Result, ours, run
from kserve_ext.sim.traces import Arrival
from kserve_ext.sim.workloads import EMULATED, cold_starts, nearly_full

CLAIM: Final = "probe cache saves 79 % of probes"
LOSES: Final = "where asking loses"
SILENT_AT: Final = 4.0  # nobody has told for long enough when the first start comes
EQUAL: Final = 0.02
TOLD: Final = FULL
CACHE: Final = replace(FULL, told=False)
ASKING: Final = replace(CACHE, probe_cache=False)


class Case(NamedTuple):
    name: str
    schedule: int  # functions
    rate: float  # starts a second
    starts: int
    full: float = 0.0  # share of the cluster that is taken before; then the rate is nearly_full's


#: at load, on partitions of 6 and of 52 nodes
SAVING: Final = (Case("at load", 35, 2000.0, 2000), Case("at load", 4, 4000.0, 2000))
LOSING: Final = (
    Case("few nodes, low load", 35, 20.0, 60),
    Case("90 % full", 35, 0.0, 0, 0.9),
    Case("99 % full", 4, 0.0, 0, 0.99),
)


class Ways(NamedTuple):
    told: Result
    asking: Result
    cache: Result
    said: str


def compare(case: Case, world: World, seed: int) -> Ways:
    arrivals: Sequence[Arrival]
    if case.full:
        place, arrivals, scene = nearly_full(case.full, world, seed)
    else:
        place, scene = replace(EMULATED, nodes=world.nodes, hop_s=world.hop_s, seed=seed), 0
        arrivals = cold_starts(case.rate, case.starts, max(1, case.starts // 5), seed, SILENT_AT)

    def one(name: str, layout: Layout) -> Result:
        return run(ours(replace(layout, schedule=case.schedule), name), arrivals, place, 20.0, scene)

    what = f"{len(arrivals) - scene} starts at {case.rate or 500.0:,.0f}/s"
    said = f"{said_of(place, seed)}; {case.name}; {case.schedule} Schedule functions; {what}"
    return Ways(one("told", TOLD), one("asking", ASKING), one("cache", CACHE), said)


def saved(ways: Ways) -> float:
    return 1 - _probes(ways.cache) / _probes(ways.asking)


def equal(ways: Ways) -> bool:
    """The cache places as well as asking does, or better."""
    starts = max(1, ways.asking.starts)
    worse = (ways.cache.refused_starts - ways.asking.refused_starts) / starts
    return ways.cache.p99 <= ways.asking.p99 * (1 + EQUAL) and worse <= EQUAL


def rows(world: World, seed: int) -> Iterator[Row]:
    for case in SAVING:
        ways = compare(case, world, seed)
        quality = "equal placement quality" if equal(ways) else "placement quality is NOT equal"
        said = f"{ways.said}; nobody tells of nodes; {quality}"
        yield _row(CLAIM, "probes for each start", ways.cache, ways.asking, _probes, "", said)
        yield _row(CLAIM, "p99 scheduling latency", ways.cache, ways.asking, lambda r: r.p99, "s", said)
        yield _row(CLAIM, "starts refused by nodes", ways.cache, ways.asking, _refused, "", said)
        yield _row(CLAIM, "processor time for each start", ways.cache, ways.asking, _core, "us", said)
    for case in LOSING:
        ways = compare(case, world, seed)
        for other in (ways.asking, ways.cache):
            yield _row(
                LOSES,
                f"p99 scheduling latency, {case.name}",
                ways.told,
                other,
                lambda r: r.p99,
                "s",
                ways.said,
            )
            yield _row(
                LOSES, f"starts refused by nodes, {case.name}", ways.told, other, _refused, "", ways.said
            )
        name = f"probes for each start, {case.name}"
        yield _row(LOSES, name, ways.cache, ways.asking, _probes, "", ways.said)


def _row(
    claim: str, metric: str, mine: Result, other: Result, of: Callable[[Result], float], unit: str, said: str
) -> Row:
    return Row(claim, metric, of(mine), of(other), other.system, unit, "lower", said)


def _probes(result: Result) -> float:
    return result.probes / max(1, result.starts)


def _refused(result: Result) -> float:
    return float(result.refused_starts)


def _core(result: Result) -> float:
    return (result.control_core_s or 0.0) / max(1, result.starts) * 1e6
