"""Kills, pauses, cuts and bad weather for our control plane in virtual time, and what must hold all the same.

A schedule of faults is a list, or drawn from a seed; the same one is the same run, byte for byte. A killed process
loses all that it knew: what a Dispatch function held is reset, and so is what instances serve on its behalf. It comes
back as another process of the same name, one incarnation higher. A paused one does nothing, and is late; a controller
that is paused for longer than its lease has a successor. A node that is cut off goes on by itself; two functions that
are cut apart reach everybody but each other. In a storm messages are lost, late, out of order and repeated (those
only that may be: requests that ask for a whole Schedule call go once).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal, NamedTuple

from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.sim.layout import Layout
from kserve_ext.sim.parts.network import Process
from kserve_ext.sim.systems.galaxy import Galaxy

CONTROLLER: Final = FunctionID("controller")
ONCE: Final = frozenset({"schedule-call", "ack", "placed", "submit"})
WATCH_S: Final = 0.5
UNKNOWN_S: Final = 35.0  # an instance that its home doesn't know is stopped within 30 s after 5 s

What = Literal["kill", "pause", "cut", "apart", "storm"]


class Fault(NamedTuple):
    at: float
    what: What
    who: str  # a function, CONTROLLER or a node; two with a space between that are apart; "" for a storm
    seconds: float  # until it is back, or over


class Storm(NamedTuple):
    """Shares of the messages."""

    lost: float = 0.02
    late: float = 0.1
    twice: float = 0.02
    late_s: float = 0.05  # at most


STORM: Final = Storm()


def drawn(
    seed: int, layout: Layout, nodes: int, seconds: float, count: int, first: float = 1.0, apart: int = 0
) -> list[Fault]:
    """So many faults, one of a kind at a time, over that time.

    `apart`: so many more, which are pauses of the controller and cuts between two functions, one of which may be it.
    """
    rng = random.Random(f"faults/{seed}")
    kinds: tuple[tuple[What, Callable[[], str]], ...] = (
        ("kill", lambda: f"dispatch-{rng.randrange(layout.dispatch)}"),
        ("kill", lambda: f"schedule-{rng.randrange(layout.schedule)}"),
        ("kill", lambda: f"cluster-mgr-{rng.randrange(layout.cluster_mgr)}"),
        ("kill", lambda: CONTROLLER),
        ("pause", lambda: f"dispatch-{rng.randrange(layout.dispatch)}"),
        ("pause", lambda: f"schedule-{rng.randrange(layout.schedule)}"),
        ("cut", lambda: f"node-{rng.randrange(nodes):04d}"),
        ("storm", lambda: ""),
    )
    out: list[Fault] = []
    for k in range(count):
        what, who = kinds[rng.randrange(len(kinds))]
        out.append(Fault(first + k * seconds / count, what, who(), rng.uniform(0.5, 6.0)))
    return sorted([*out, *_drawn_apart(seed, layout, seconds, apart, first)])


def _drawn_apart(seed: int, layout: Layout, seconds: float, count: int, first: float) -> list[Fault]:
    rng = random.Random(f"apart/{seed}")
    functions = [f"{kind.replace('_', '-')}-{n}" for kind, most in layout.counts() for n in range(most)]
    out: list[Fault] = []
    for k in range(count):
        at, over = first + (k + rng.random()) * seconds / count, rng.uniform(0.5, 8.0)
        if rng.random() < 0.25:
            out.append(Fault(at, "pause", CONTROLLER, over))
        else:
            out.append(Fault(at, "apart", " ".join(rng.sample([*functions, CONTROLLER], 2)), over))
    return out


class Faults:
    """They happen to `galaxy` as its clock goes; `violations` is what should not have come of it."""

    def __init__(self, galaxy: Galaxy, faults: Sequence[Fault], seed: int, storm: Storm = STORM) -> None:
        self.galaxy, self.storm = galaxy, storm
        self.violations: list[str] = []
        self._rng = random.Random(f"weather/{seed}")
        self._storms = 0
        self._cut: set[Process] = set()
        self._apart: list[frozenset[str]] = []
        self._unknown: dict[InstanceID, float] = {}
        self._obeyed: dict[tuple[NodeID, RevisionKey], int] = {}
        self._shown: dict[FunctionID, int] = {}
        galaxy.network.weather = self
        for fault in faults:
            galaxy.clock.at(fault.at, partial(self._happen, fault))
        galaxy.clock.every(WATCH_S, self.watch)

    # --- what happens

    def _happen(self, fault: Fault) -> None:
        galaxy, clock = self.galaxy, self.galaxy.clock
        galaxy.fleet.count(f"fault: {fault.what}")
        if fault.what == "storm":
            self._storms += 1
            clock.after(fault.seconds, self._calm)
        elif fault.what == "cut":
            process = galaxy.nodes[NodeID(fault.who)].process
            self._cut.add(process)
            clock.after(fault.seconds, partial(self._cut.discard, process))
        elif fault.what == "apart":
            pair = frozenset(fault.who.split())
            self._apart.append(pair)
            clock.after(fault.seconds, partial(self._apart.remove, pair))
        elif fault.what == "pause" and fault.who == CONTROLLER:
            galaxy.controller.pause(fault.seconds)
        elif fault.what == "pause":
            process = galaxy.process(FunctionID(fault.who))
            process.paused_until = clock.now + fault.seconds
            process.core.spend(fault.seconds)
        elif fault.who == CONTROLLER:
            if not galaxy.controller.process.dead:
                galaxy.controller.die()
        else:
            self.kill(FunctionID(fault.who))
            clock.after(fault.seconds, partial(self.revive, FunctionID(fault.who)))

    def _calm(self) -> None:
        self._storms -= 1

    def kill(self, name: FunctionID) -> None:
        galaxy, fleet = self.galaxy, self.galaxy.fleet
        process = galaxy.processes[name]
        if process.dead:
            return
        process.dead = True
        shard = galaxy.shards.get(name)
        if shard is not None:
            shard.dead = True
            for part in shard.shard.parts.values():
                for held in part.throttler.all_held():
                    fleet.refuse(held.request)
            for instance, held in [(i, h) for i, h in galaxy.serving.items() if h.shard == name]:
                del galaxy.serving[instance]
                fleet.break_off(instance)
                galaxy.where[held.instance].served(held.instance)
        fleet.hop(partial(self._noticed, name, process))

    def _noticed(self, name: FunctionID, process: Process) -> None:
        controller, clock = self.galaxy.controller, self.galaxy.clock
        if not controller.process.dead and self.galaxy.processes[name] is process:
            if controller.process.runs(clock.now):
                controller.lost(name)
            else:  # it finds out when it goes on
                clock.after(0.1, partial(self._noticed, name, process))

    def revive(self, name: FunctionID) -> None:
        galaxy = self.galaxy
        if not galaxy.processes[name].dead:
            return
        member = galaxy.functions[name]
        galaxy.boot(member.kind, name, member.incarnation + 1)
        controller = galaxy.controller.process
        if controller.runs(galaxy.now) and not self.apart(controller, galaxy.processes[name]):
            galaxy.controller.join(galaxy.functions[name])  # else by its report

    # --- the weather

    def fate(self, source: Process, to: Process, kind: str) -> tuple[float, ...]:
        if source.dead or source in self._cut or to in self._cut or self.apart(source, to):
            return ()
        if not self._storms:
            return (0.0,)
        rng, storm = self._rng, self.storm
        if rng.random() < storm.lost:
            return ()
        copies = 2 if kind not in ONCE and rng.random() < storm.twice else 1
        return tuple(
            rng.uniform(0.0, storm.late_s) if rng.random() < storm.late else 0.0 for _ in range(copies)
        )

    def cut_off(self, process: Process) -> bool:
        return process in self._cut

    def apart(self, one: Process, other: Process) -> bool:
        return frozenset((one.name, other.name)) in self._apart

    # --- what must hold

    def watch(self) -> None:
        """At any time."""
        galaxy = self.galaxy
        for node, agent in zip(galaxy.fleet.nodes, galaxy.nodes.values(), strict=True):
            self._holds(len(node.instances) <= node.room, f"{agent.id} runs more than it has room for")
            self._asserts(f"{agent.id}", agent.machine.check)
            for life in agent.machine.lives.known.values():
                key = life.revision.key
                obeyed = agent.machine.homes.obeyed(key)
                self._holds(
                    obeyed >= self._obeyed.get((agent.id, key), 0), f"{agent.id}: epoch of {key} fell"
                )
                self._obeyed[agent.id, key] = obeyed
                if life.state in ("starting", "ready") and not self._known(life.id, key):
                    since = self._unknown.setdefault(life.id, galaxy.now)
                    long = galaxy.now - since > UNKNOWN_S
                    self._holds(not long, f"{life.id} on {agent.id} is known to no home for {UNKNOWN_S:g} s")
                else:
                    self._unknown.pop(life.id, None)
        self._leases()
        overlaps = galaxy.fleet.counts.get("overlapping", 0)
        self._holds(not overlaps, "a request was sent to an instance that served another one")
        for name, epoch in galaxy.controller.shown.items():
            self._holds(epoch >= self._shown.get(name, 0), f"the epoch of {name} fell")
            self._shown[name] = epoch

    def _leases(self) -> None:
        """What shards may send to an instance, all together, is no more than it takes at once."""
        galaxy, now = self.galaxy, self.galaxy.now
        slots: dict[InstanceID, int] = {}
        for name, shard in galaxy.shards.items():
            if galaxy.processes[name].runs(now):
                for part in shard.shard.parts.values():
                    throttler = part.throttler
                    for tracker in throttler.trackers.values():
                        may = tracker.slots if now < throttler.valid_until else 0
                        slots[tracker.id] = slots.get(tracker.id, 0) + may
        for instance, count in slots.items():
            self._holds(count <= 1, f"{instance}: {count} slots may be used")

    def finish(self) -> None:
        """When nothing is left to do: every request has been answered or its client was told, nothing leaks."""
        self.watch()
        for request in self.galaxy.fleet.requests:
            settled = request.refused or request.ended is not None
            self._holds(settled, f"request {request.number} of {request.function} was lost")
        for agent in self.galaxy.nodes.values():
            for life in agent.machine.lives.known.values():
                known = life.ended or self._known(life.id, life.revision.key)
                self._holds(known, f"{life.id} on {agent.id} is {life.state}, and no home knows it")

    def _known(self, instance: InstanceID, key: RevisionKey) -> bool:
        home_key = self.galaxy.revisions[key].home_key
        name = self.galaxy.home_of(home_key)
        home = self.galaxy.shards[name].homes.get(home_key) if name is not None else None
        return home is not None and key in home.revisions and instance in home.revisions[key].fleet.known

    def _asserts(self, who: str, check: Callable[[], None]) -> None:
        try:
            check()
        except AssertionError as error:
            self._holds(False, f"{who}: {str(error).splitlines()[0] if str(error) else 'an invariant'}")

    def _holds(self, holds: bool, otherwise: str) -> None:
        if not holds and otherwise not in self.violations:
            self.violations.append(otherwise)
