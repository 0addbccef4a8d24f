"""What a run does besides its faults: which services there are, what is asked of them, and what is promised.

The plan of `python -m tests.chaos` is FULL. The short ones each bring about what one planted bug needs to show, in a
few seconds and with limits to match; without the bug nothing is broken by them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from kserve_ext.core.facts import Hold, Resources, Revision
from kserve_ext.core.rendezvous import ranked
from tests.chaos import objects, services
from tests.chaos.cluster import Cluster, Shape, host_of
from tests.chaos.digest import Limits
from tests.chaos.faults import Fault
from tests.chaos.load import Client
from tests.chaos.services import SHORT, revision


class Loading(Protocol):
    async def run(self, seconds: float) -> None: ...


class Plan(NamedTuple):
    services: Callable[[Path], list[Revision]]
    load: Callable[[Cluster, int], Loading]
    shape: Shape = Shape()
    limits: Limits = Limits()
    #: everything is gone so long after it was deleted
    gone_s: float = 45.0
    seconds: float = 0.0  # 0 = as asked
    faults: tuple[Fault, ...] = ()


FULL = Plan(services.standing, services.Load)
#: The clusters of random runs: a seed has one of them.
SHAPES: dict[str, Shape] = {
    "plain": Shape(),
    "elastic": Shape(schedule=1, elastic=3),
    "leaders": Shape(controllers=2),
    "leaders-elastic": Shape(controllers=2, schedule=1, elastic=3),
    "apart": Shape(apart=True),
    "objects": Shape(objects=True),
}


def full(cluster: str) -> Plan:
    """What a random run does in a cluster of that name."""
    shape = SHAPES[cluster]
    if shape.objects:
        return Plan(lambda history: [], objects.Load, shape)
    return FULL._replace(shape=shape)


class Ask(NamedTuple):
    at: float
    service: str
    shard: str = "dispatch-0"
    many: int = 1
    path: str = "/?delay=0.05"
    again: int = 1  # so many one after the other, on one connection


class Script:
    """Asks as it is written."""

    def __init__(self, cluster: Cluster, asks: tuple[Ask, ...]) -> None:
        self.cluster, self.asks = cluster, asks

    async def run(self, seconds: float) -> None:
        works = [self._ask(ask) for ask in self.asks for _ in range(ask.many)]
        await asyncio.gather(asyncio.sleep(seconds), *works)

    async def _ask(self, ask: Ask) -> None:
        await asyncio.sleep(ask.at)
        client = Client(self.cluster.said, ask.shard, self.cluster.http(ask.shard))
        for _ in range(ask.again):
            await client.ask(host_of(f"chaos/{ask.service}"), f"chaos/{ask.service}", ask.path)
        client.close()


def script(
    asks: tuple[Ask, ...], *made: Callable[[Path], Revision], faults: tuple[Fault, ...] = (), **more: Any
) -> Plan:
    limits = QUICK._replace(**more.pop("limits", {}))
    return Plan(
        lambda history: [make(history) for make in made],
        lambda cluster, seed: Script(cluster, asks),
        shape=more.pop("shape", SMALL),
        limits=limits,
        faults=faults,
        gone_s=more.pop("gone_s", 20.0),
        **more,
    )


def service(name: str, **changes: Any) -> Callable[[Path], Revision]:
    scale = SHORT._replace(**changes.pop("scale", {}))
    return lambda history: revision(name, history, scale=scale, **changes)


SMALL = Shape(dispatch=2, schedule=1, cluster_mgr=1, nodes=2)
QUICK = Limits(routed_s=0.0, settle_s=3.0, known_s=2.0, start_s=8.0, answered_s=4.0)


def homed_at(*shards: str) -> list[str]:
    """Names of services whose home is the first of these, then the second, and so on."""
    names = (f"s{k}" for k in range(99))
    return [n for n in names if ranked(f"chaos/{n}", sorted(shards)) == list(shards)]


HERE, *MORE_HERE = homed_at("dispatch-0", "dispatch-1")
THERE = homed_at("dispatch-1", "dispatch-0")[0]
OF_THREE = homed_at("dispatch-0", "dispatch-2", "dispatch-1")[0]
#: As many that what comes late by chance comes at a bad time for one of them.
SOME_HERE = (HERE, *MORE_HERE[:3])


def paused(name: str, **more: Any) -> Plan:
    """A Dispatch function is paused for longer than its leases last, while its request goes on."""
    return script(
        (Ask(0.1, name, "dispatch-1", path="/?delay=11.0"), Ask(5.0, name, "dispatch-0")),
        service(name, concurrency=1, scale={"max": 1}, hold=Hold(seconds=30.0)),
        faults=(Fault(1.5, "pause", "dispatch-1", 9.0),),
        seconds=13.0,
        **more,
    )


def paused_away(home_away_s: float) -> Plan:
    """A Dispatch function is paused, and soon after the home is killed; it is back after so long."""
    return script(
        (
            Ask(0.1, OF_THREE, "dispatch-1", many=2, path="/?delay=9.0"),
            Ask(2.2, OF_THREE, "dispatch-2", many=2, path="/?delay=1.0"),
        ),
        service(OF_THREE, concurrency=2, scale={"max": 1}, hold=Hold(seconds=30.0)),
        faults=(Fault(1.4, "pause", "dispatch-1", 6.0), Fault(1.5, "kill", "dispatch-0", home_away_s)),
        shape=SMALL._replace(dispatch=3),
        seconds=12.0,
    )


#: The script in which each planted bug shows.
SCRIPTS: dict[str, Plan] = {
    "lost-instance": script(
        (),
        service(HERE, scale={"min": 1, "initial": 1, "max": 3}),
        faults=(Fault(0.5, "kill", "dispatch-0", 1.0),),
        seconds=9.0,
        limits={"stopped_s": 0.0},
    ),
    "double-home": script(
        (Ask(0.1, HERE), Ask(0.3, HERE, "dispatch-1")), service(HERE, concurrency=2), seconds=4.0
    ),
    "stale-epoch": script(
        (Ask(0.1, HERE, path="/?delay=2.0"),),
        service(HERE),
        faults=(Fault(1.0, "late-stop", "0"),),
        seconds=2.5,
    ),
    "leaked-lease": script(
        (Ask(0.1, HERE, "dispatch-1", path="/?delay=3.0"), Ask(5.5, HERE, "dispatch-0")),
        service(HERE, concurrency=1, scale={"max": 1}, hold=Hold(seconds=3.0)),
        faults=(Fault(1.5, "kill", "dispatch-1", 0.2),),
        seconds=9.5,
        limits={"settle_s": 2.5},
    ),
    "over-commit": script(
        (Ask(0.1, "hog", many=4, path="/?delay=1.0"),),
        service(
            "hog",
            needs=Resources(cpu_milli=3000, memory_mib=64),
            scale={"max": 4, "target": 1.0},
            hold=Hold(seconds=2.0),
        ),
        seconds=3.0,
    ),
    "lost-request": script((Ask(0.1, HERE, many=6),), service(HERE, timeout_s=3.0), seconds=4.0),
    "answered-twice": script((Ask(0.1, HERE, again=3),), service(HERE), seconds=1.0),
    "placed-twice": script(
        (Ask(0.6, HERE, many=8, path="/?delay=3.0"),),
        service(
            HERE,
            needs=Resources(cpu_milli=1000, memory_mib=64),
            scale={"max": 8, "target": 1.0},
        ),
        faults=(Fault(0.5, "pause", "node-0", 3.5), Fault(0.5, "pause", "node-1", 3.5)),
        shape=SMALL._replace(nodes=3),
        seconds=6.0,
    ),
    "bound-passed": script(
        (Ask(0.1, HERE, many=6, path="/?delay=1.0"),),
        service(HERE, scale={"max": 2, "target": 1.0}),
        seconds=2.0,
    ),
    "never-stopped": script((Ask(0.1, HERE),), service(HERE), seconds=1.0, gone_s=5.0),
    "not-recalled": script(
        (
            Ask(0.1, OF_THREE, "dispatch-1", many=2, path="/?delay=6.0"),
            Ask(2.2, OF_THREE, "dispatch-2", many=2, path="/?delay=1.0"),
        ),
        service(OF_THREE, concurrency=2, scale={"max": 1}),
        faults=(Fault(1.4, "pause", "dispatch-1", 2.6), Fault(1.5, "kill", "dispatch-0", 4.0)),
        shape=SMALL._replace(dispatch=3),
        seconds=6.0,
    ),
    # It has left the view before the first home comes back, as a process that knows of nothing before.
    "not-told": paused_away(4.0),
    # The home can't see what the paused one has under way.
    "not-fenced": paused(HERE, shape=SMALL._replace(apart=True)),
    "half-a-gang": script(
        (Ask(0.1, "hog-decode"),),
        service("hog-prefill", role="prefill", group="chaos/pair"),
        service(
            "hog-decode",
            role="decode",
            group="chaos/pair",
            needs=Resources(cpu_milli=8000, memory_mib=64),
            hold=Hold(seconds=1.5),
        ),
        seconds=2.5,
    ),
    "epoch-back": script(
        (),
        service(HERE, scale={"min": 1, "initial": 1}),
        faults=(Fault(0.5, "kill", "controller-0", 0.3),),
        seconds=4.0,
    ),
    "store-in-the-way": script(
        (Ask(1.5, HERE),), service(HERE), faults=(Fault(0.5, "pause", "controller-0", 7.0),), seconds=8.0
    ),
    "done-though-dead": script(
        (Ask(0.1, HERE, path="/stream?n=40&gap=0.1"),),
        service(HERE),
        faults=(Fault(2.0, "kill-instance", "0"),),
        seconds=5.0,
    ),
    "started-twice": script(
        (Ask(0.1, HERE, path="/?delay=2.0"),),
        service(HERE),
        faults=tuple(Fault(0.0, "resend", node, 3.0, 2.0) for node in ("node-0", "node-1")),
        seconds=4.0,
    ),
    "object-forgotten": Plan(
        lambda history: [],
        objects.One,
        SMALL._replace(objects=True),
        QUICK,
        gone_s=20.0,
        seconds=9.0,
        faults=(Fault(1.5, "kill", "objects-0", 0.5),),
    ),
    "grant-overtaken": script(
        tuple(
            ask
            for name in SOME_HERE
            for ask in (
                Ask(0.1, name, path="/?delay=1.0"),
                # Home has nothing to give then: its Grant goes out by itself when the slot is free.
                Ask(0.5, name, "dispatch-1", path="/?delay=0.1"),
                Ask(2.5, name, path="/?delay=7.0"),
                Ask(3.0, name, "dispatch-1"),
            )
        ),
        *(service(name, concurrency=1, scale={"max": 1}, hold=Hold(seconds=20.0)) for name in SOME_HERE),
        faults=(Fault(0.0, "resend", "dispatch-1", 3.0, 6.0),),
        seconds=11.0,
    ),
}


#: What runs have found, told again, and what must go well besides: all clean.
STORIES: dict[str, Plan] = {
    "paused-shard": paused(HERE),
    "paused-home": paused(THERE),
    # Its new home has yet to hear of what it uses when it leaves the view.
    "paused-unasked": paused_away(9.0),
    "objects-go": Plan(
        lambda history: [],
        objects.Load,
        SMALL._replace(objects=True),
        faults=(
            Fault(1.0, "kill", "objects-0", 0.5),
            Fault(4.0, "pause", "objects-0", 6.0),
            Fault(6.0, "kill", "controller-0", 1.0),
            Fault(7.0, "kill", "dispatch-1", 1.0),
            Fault(11.0, "kill", "objects-0", 2.0),
        ),
        seconds=30.0,
    ),
    "cut-off": script(
        (Ask(0.1, HERE, many=4, path="/?delay=0.3"), Ask(6.0, HERE, many=4)),
        service(HERE, scale={"min": 1, "initial": 1, "max": 4, "target": 1.0}),
        faults=(Fault(1.0, "cut", "node-0", 4.0),),
        seconds=12.0,
    ),
    "silent-home": script(
        (Ask(0.1, THERE, many=2), Ask(2.0, THERE, many=3), Ask(9.0, THERE, "dispatch-1", many=2)),
        service(THERE, concurrency=2, scale={"min": 1, "initial": 1}),
        faults=(Fault(1.0, "silent", "dispatch-1", 6.0, 1.0), Fault(1.0, "lost", "node-0", 4.0, 1.0)),
        seconds=14.0,
    ),
    "functions-go": script(
        # One after the other, so that each is a call of its own to the Schedule function.
        tuple(Ask(0.5 + 0.15 * k, THERE, path="/?delay=4.0") for k in range(10))
        + tuple(Ask(7.0 + 0.15 * k, HERE, path="/?delay=1.0") for k in range(4)),
        service(THERE, scale={"max": 10, "target": 1.0}),
        service(HERE, scale={"max": 4, "target": 1.0}),
        faults=(Fault(0.5, "kill-function", "0"), Fault(5.0, "pause-function", "1", 3.5)),
        shape=SMALL._replace(elastic=2),
        seconds=14.0,
    ),
    "leader-goes-store-is-lost": script(
        (Ask(0.1, HERE, many=2), Ask(3.0, HERE, many=3), Ask(9.0, THERE, "dispatch-1", many=2)),
        service(HERE),
        service(THERE),
        faults=(
            Fault(1.0, "pause", "leader", 6.0),
            Fault(8.0, "kill", "store", 1.5),
            Fault(12.0, "kill", "leader", 1.0),
        ),
        shape=SMALL._replace(controllers=2),
        seconds=16.0,
    ),
    "clocks-go-back": script(
        (Ask(0.1, HERE), Ask(6.0, HERE, many=3), Ask(6.0, HERE, "dispatch-1", many=3)),
        service(HERE, concurrency=2, scale={"min": 1, "initial": 1}),
        faults=tuple(
            fault
            for part in ("node-0", "node-1", "dispatch-1")
            for fault in (Fault(0.5, "clock", part, amount=-3600.0), Fault(0.8, "kill", part, 0.1))
        ),
        seconds=9.0,
    ),
}
