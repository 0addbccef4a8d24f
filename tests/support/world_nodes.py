"""The nodes of tests/support/world.py, what runs on them, and the requests that they serve."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from kserve_ext.core.facts import Command, Hold, Instance, InstanceState, Model, Resources, Revision, Scale
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey

if TYPE_CHECKING:
    from kserve_ext.sim.parts.dispatch import Dispatch
    from tests.support.world import World

FULL_S = 2.0
NOBODY = InstanceID("")
REVISION = RevisionKey("ns/a")


def revision(name: str = "ns/a", **changes: Any) -> Revision:
    base = Revision(
        RevisionKey(name),
        name,
        1,
        Command(("serve",), drain_s=5.0),
        Model(),
        Resources(cpu_milli=1000),
        Scale(min=0, max=3, initial=0, window_s=6.0, grace_s=1.0),
        Hold(seconds=60.0),
        concurrency=2,
    )
    return base._replace(**changes)


@dataclass(eq=False)
class Request:
    id: int
    key: RevisionKey
    shard: FunctionID
    held_bytes: int = 10
    state: str = "new"  # held | sent | ok | refused | failed | reset
    instance: InstanceID = NOBODY
    reason: str = ""
    attempts: int = 0

    def to(self, state: str) -> None:
        assert self.state in ("new", "held", "sent"), (
            f"request {self.id} was answered twice: {self.state}, {state}"
        )
        self.state = state


@dataclass
class Running:
    """One instance on its node."""

    id: InstanceID
    key: RevisionKey
    node: NodeID
    state: InstanceState = "starting"
    requests: set[Request] = field(default_factory=set)
    peak: int = 0


class Node:
    def __init__(self, world: World, name: str, room: int) -> None:
        self.world, self.id, self.room = world, NodeID(name), room
        self.running: dict[InstanceID, Running] = {}
        self.obeyed: dict[RevisionKey, int] = {}
        self.homes: dict[RevisionKey, str] = {}
        self.agent = True
        self.full_at = 0.0
        #: how the next start fails; "" = it doesn't
        self.fail = ""

    def start(self, instance: InstanceID, rev: Revision, epoch: int) -> str:
        if epoch < self.obeyed.get(rev.key, 0):
            return "stale"
        if instance in self.running:
            return ""
        if len(self.running) >= self.room:
            return f"node {self.id}: cpu: needs 1000m, 0m free"
        self.obeyed[rev.key], self.homes[rev.key] = epoch, rev.home_key
        self.running[instance] = Running(instance, rev.key, self.id)
        return ""

    def stop(self, instance: InstanceID, key: RevisionKey, epoch: int) -> None:
        run = self.running.get(instance)
        if run is not None and epoch >= self.obeyed.get(key, 0):
            self.world.say(f"stop {instance}")
            if run.state == "starting":
                self.end(run)
                return
            run.state = "draining"
            self.tell(run)
            self.drained(run)

    def drained(self, run: Running) -> None:
        if run.state == "draining" and not run.requests:
            self.end(run)

    def ready(self, run: Running) -> None:
        run.state = "ready"
        self.world.say(f"ready {run.id}")
        self.tell(run)
        for proc in self.world.live():  # those that wait are told directly
            if proc.shard.parts[run.key].throttler.held:
                self.world.send(partial(proc.announced, run.key, (self.fact(run),)))

    def end(self, run: Running, reason: str = "", permanent: bool = False) -> None:
        self.running.pop(run.id, None)
        self.world.say(f"end {run.id}" + (f": {reason}" if reason else ""))
        for request in list(run.requests):
            self.world.broke_off(request)
        run.state = "failed" if reason else "gone"
        self.tell(run, reason, permanent)

    def fact(self, run: Running, reason: str = "", permanent: bool = False) -> Instance:
        return Instance(
            run.id, run.key, self.id, run.state, f"{run.id}:80", reason=reason, permanent=permanent
        )

    def tell(self, run: Running, reason: str = "", permanent: bool = False) -> None:
        if self.agent:
            self._mod(run.key, (self.fact(run, reason, permanent),), False)

    def tick(self) -> None:
        if self.agent and self.world.now >= self.full_at:
            self.full_at = self.world.now + FULL_S
            for key in self.homes:
                self._mod(key, tuple(self.fact(r) for r in self.running.values() if r.key == key), True)

    def _mod(self, key: RevisionKey, facts: tuple[Instance, ...], full: bool) -> None:
        home = self.world.home_of(self.homes[key])
        if home is not None:
            self.world.send(partial(self._deliver, self.world.procs[home], key, facts, full))

    def _deliver(
        self, proc: Dispatch[Request], key: RevisionKey, facts: tuple[Instance, ...], full: bool
    ) -> None:
        if proc.dead:
            return
        for instance in proc.mod_instance(key, self.id, facts, full):
            run = self.running.get(instance)
            if run is not None and run.state != "draining":
                run.state = "draining"
                self.drained(run)

    def recall(self, epoch: int, key: RevisionKey) -> tuple[Instance, ...]:
        self.obeyed[key] = max(epoch, self.obeyed.get(key, 0))
        return tuple(self.fact(r) for r in self.running.values() if r.key == key)
