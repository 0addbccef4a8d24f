"""A whole cluster in one process and virtual time: Dispatch processes (shard and homes), nodes that admit, one
Schedule function, a controller, and a network that loses and delays what the test wants it to.

The Dispatch process here does what the shells in activator_replacement do, so a run is as good as a real one as
far as decisions go. Nodes count for themselves what runs and how many requests each instance sees at once, and
the world keeps account of every request: this is what invariants are checked against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from kserve_ext.core import rendezvous
from kserve_ext.core.facts import Command, Hold, Instance, InstanceState, Model, Resources, Revision, Scale
from kserve_ext.core.home import Home
from kserve_ext.core.home_facts import (
    LEASE_TTL_S,
    AskNode,
    Demand,
    Instruction,
    Outcome,
    Place,
    Remember,
    Retake,
    SendGrant,
    StopInstance,
)
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.core.revision_home import Copy
from kserve_ext.core.shard import Shard
from kserve_ext.core.throttler import HELD, Tracker

TICK_S = 0.25
FULL_S = 2.0


def revision(name: str = "ns/a", **changes: object) -> Revision:
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
    instance: InstanceID = InstanceID("")
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
        self.tell(run)
        for proc in self.world.live():  # those that wait are told directly
            if proc.shard.parts[run.key].throttler.held:
                self.world.send(partial(proc.announced, run.key, (self.fact(run),)))

    def end(self, run: Running, reason: str = "", permanent: bool = False) -> None:
        self.running.pop(run.id, None)
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

    def _deliver(self, proc: Proc, key: RevisionKey, facts: tuple[Instance, ...], full: bool) -> None:
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


class Proc:
    """One Dispatch process."""

    def __init__(self, world: World, name: FunctionID, incarnation: int) -> None:
        self.world, self.id, self.incarnation = world, name, incarnation
        self.shard: Shard[Request] = Shard(incarnation)
        self.homes: dict[str, Home] = {}
        self.dead = False
        self.epoch = 0
        self.left: dict[FunctionID, float] = {}
        self.members: dict[FunctionID, int] = {}
        for rev in world.revisions.values():
            self.shard.know(rev, world.now)

    # --- the view

    def view(self, epoch: int, members: dict[FunctionID, int], nodes: set[NodeID]) -> None:
        if epoch < self.epoch or self.dead:
            return
        now = self.world.now
        for gone in self.members.keys() - members.keys():
            self.left[gone] = now
        self.left = {m: t for m, t in self.left.items() if m not in members and now - t < LEASE_TTL_S}
        self.epoch, self.members = epoch, members

        def owner(key: str) -> FunctionID | None:
            return rendezvous.owner(key, members)

        self.shard.view(epoch, owner)
        for home_key in sorted({r.home_key for r in self.world.revisions.values()}):
            if owner(home_key) != self.id:
                self.homes.pop(home_key, None)
                continue
            fresh = home_key not in self.homes
            if fresh:
                self.homes[home_key] = Home(self.id, epoch, self.world.new_id)
            home = self.homes[home_key]
            self.carry(home_key, home.view(nodes, members, self.left, now))
            if fresh:
                for rev in self.world.revisions.values():
                    if rev.home_key == home_key:
                        self.carry(home_key, home.add(rev, *self.world.stored(rev.key), now))
        self.recall_shards()
        self.flush()

    def recall_shards(self) -> None:
        for home_key, home in list(self.homes.items()):
            for shard, keys in home.silent_shards.items():
                term = home.term

                def ask(
                    shard: FunctionID = shard, keys: list[RevisionKey] = keys, term: int = term
                ) -> object:
                    proc = self.world.procs[shard]
                    return None if proc.dead else proc.shard.recall(term, keys, self.world.now)

                def told(answer: object, shard: FunctionID = shard, keys: list[RevisionKey] = keys) -> None:
                    if isinstance(answer, list) and home_key in self.homes:
                        out = self.homes[home_key].recalled(shard, keys, answer, self.world.now)
                        self.carry(home_key, out)

                self.call(ask, told)

    # --- requests

    def submit(self, request: Request) -> None:
        outcome = self.shard.submit(request.key, request, self.world.now)
        if isinstance(outcome, Tracker):
            self.go(request, outcome)
        elif outcome == HELD:
            request.to("held")
        else:
            request.to("refused")
        self.flush()

    def go(self, request: Request, tracker: Tracker) -> None:
        request.to("sent")
        request.instance = tracker.id
        request.attempts += 1
        self.world.arrive(request)

    def finished(self, request: Request) -> None:
        following = self.shard.finished(request.key, request.instance, self.world.now)
        if following is not None:
            self.go(following, self.shard.parts[request.key].throttler.trackers[request.instance])
        self.flush()

    def failed(self, request: Request) -> None:
        again = request.attempts < 8
        self.shard.failed(request.key, request, request.instance, again, self.world.now)
        request.to("held" if again else "failed")
        home, key, instance = (
            self.world.home_of(self.world.revisions[request.key].home_key),
            request.key,
            request.instance,
        )
        if home is not None:
            self.world.send(partial(self.world.procs[home].broken, key, instance))
        self.drain(key)
        self.flush()

    def drain(self, key: RevisionKey) -> None:
        for request, tracker in self.shard.drain(key, self.world.now):
            self.go(request, tracker)

    def announced(self, key: RevisionKey, facts: Iterable[Instance]) -> None:
        if not self.dead:
            self.shard.announced(key, facts, self.world.now)
            self.drain(key)
            self.flush()

    def flush(self) -> None:
        for home, demand in self.shard.due(self.world.now):
            self.call(partial(self._ask_home, home, demand), partial(self._home_said, demand))

    def _ask_home(self, home: FunctionID, demand: Demand) -> object:
        proc = self.world.procs[home]
        home_key = self.world.revisions[demand.revision].home_key
        if proc.dead or home_key not in proc.homes:
            return "moved"
        grant, out = proc.homes[home_key].demand(self.id, demand, self.world.now)
        proc.carry(home_key, out)
        return grant

    def _home_said(self, demand: Demand, answer: object) -> None:
        now = self.world.now
        if answer in ("moved", "lost"):
            self.shard.unanswered(demand.revision, demand.seq, now)
        else:
            if answer is not None:
                self.granted(answer)
            self.shard.answered(demand.revision, demand.seq, now)
        self.flush()

    def granted(self, grant: object) -> Demand | None:
        if self.dead:
            return None
        for request in self.shard.grant(grant, self.world.now):  # type: ignore[arg-type]
            request.reason = grant.refusal  # type: ignore[attr-defined]
            request.to("refused")
        key: RevisionKey = grant.revision  # type: ignore[attr-defined]
        self.drain(key)
        return self.shard.report(key, self.world.now)

    # --- home

    def broken(self, key: RevisionKey, instance: InstanceID) -> None:
        home_key = self.world.revisions[key].home_key
        if not self.dead and home_key in self.homes:
            self.carry(home_key, self.homes[home_key].broken(key, instance, self.world.now))

    def mod_instance(
        self, key: RevisionKey, node: NodeID, facts: tuple[Instance, ...], full: bool
    ) -> tuple[InstanceID, ...]:
        home_key = self.world.revisions[key].home_key
        if home_key not in self.homes:
            return ()
        unwanted, out = self.homes[home_key].observed(key, node, facts, full, self.world.now)
        self.carry(home_key, out)
        return unwanted

    def carry(self, home_key: str, instructions: Iterable[Instruction]) -> None:
        for i in instructions:
            match i:
                case SendGrant():
                    self.call(partial(self._push, i), partial(self._pushed, home_key, i.shard))
                case Place():
                    self.call(partial(self.world.schedule, i, self.epoch), partial(self._placed, home_key, i))
                case StopInstance():
                    node = self.world.nodes[i.node]
                    self.world.send(partial(node.stop, i.instance, i.revision, self.epoch))
                case AskNode():
                    term = self.homes[home_key].term if home_key in self.homes else self.epoch
                    self.call(
                        partial(self._ask_node, i, max(term, self.epoch)),
                        partial(self._node_said, home_key, i),
                    )
                case Remember():
                    self.world.remember(i)
                case Retake():
                    if home_key in self.homes and i.term <= self.epoch:
                        self.carry(home_key, self.homes[home_key].retake(self.epoch, self.world.now))
                        self.recall_shards()

    def _push(self, i: SendGrant) -> object:
        proc = self.world.procs[i.shard]
        if proc.dead:
            return "lost"
        demand = proc.granted(i.grant)
        proc.flush()
        return demand

    def _pushed(self, home_key: str, shard: FunctionID, answer: object) -> None:
        if isinstance(answer, Demand) and home_key in self.homes:
            _, out = self.homes[home_key].demand(shard, answer, self.world.now)
            self.carry(home_key, out)

    def _placed(self, home_key: str, place: Place, answer: object) -> None:
        if home_key not in self.homes:
            return
        outcomes: dict[RevisionKey, list[Outcome]] = {}
        for rev, ids in place.items:
            for instance in ids:
                outcome = (
                    answer[instance]
                    if isinstance(answer, dict)
                    else Outcome(instance, reason="no answer", unknown=NodeID("?"))
                )
                outcomes.setdefault(rev.key, []).append(outcome)
        self.carry(home_key, self.homes[home_key].placed(outcomes, self.world.now))

    def _ask_node(self, i: AskNode, epoch: int) -> object:
        node = self.world.nodes[i.node]
        return node.recall(epoch, i.revision) if node.agent else "lost"

    def _node_said(self, home_key: str, i: AskNode, answer: object) -> None:
        if isinstance(answer, tuple) and home_key in self.homes:
            self.carry(home_key, self.homes[home_key].node_says(i.revision, i.node, answer, self.world.now))

    def tick(self) -> None:
        now = self.world.now
        for _, late in self.shard.tick(now):
            for request in late:
                request.to("refused")
        for key in self.shard.active:
            self.drain(key)
        for home_key, home in list(self.homes.items()):
            self.carry(home_key, home.tick(now))
            home.check()
        self.recall_shards()
        self.flush()

    def call(self, ask: Callable[[], object], told: Callable[[object], None]) -> None:
        """A call through the network; `told` hears "lost" when either way fails."""

        def back(answer: object) -> None:
            if not self.dead:
                told(answer)

        def request() -> None:
            answer = ask()
            self.world.send(partial(back, answer), lost=partial(back, "lost"))

        self.world.send(request, lost=partial(back, "lost"))


class World:
    def __init__(self, shards: int, nodes: dict[str, int], revisions: Iterable[Revision]) -> None:
        self.now = 100.0
        self.revisions = {r.key: r for r in revisions}
        self.nodes = {NodeID(n): Node(self, n, room) for n, room in nodes.items()}
        self.procs: dict[FunctionID, Proc] = {}
        self.away: set[NodeID] = set()  # nodes out of the view
        self.requests: list[Request] = []
        self.copies: dict[RevisionKey, dict[InstanceID, Copy]] = {}
        self.queue: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self.epoch = 0
        self.incarnations = 0
        self.ids = 0
        self.log: list[str] = []
        for k in range(shards):
            self.boot(FunctionID(f"dispatch-{k}"))
        self.publish()

    # --- network

    def send(self, message: Callable[[], None], lost: Callable[[], None] = lambda: None) -> None:
        self.queue.append((message, lost))

    def deliver(self, which: int = 0) -> None:
        message, _ = self.queue.pop(which % len(self.queue))
        message()

    def lose(self, which: int) -> None:
        _, lost = self.queue.pop(which % len(self.queue))
        lost()

    def flush(self, most: int = 100_000) -> None:
        while self.queue:
            most -= 1
            assert most, "messages breed messages without end"
            self.deliver()

    def pass_time(self, seconds: float, *, deliver: bool = True) -> None:
        for _ in range(max(1, round(seconds / TICK_S))):
            self.now += TICK_S
            for proc in self.live():
                proc.tick()
            for node in self.nodes.values():
                node.tick()
            if deliver:
                self.flush()

    # --- who is there

    def live(self) -> list[Proc]:
        return [p for p in self.procs.values() if not p.dead]

    def home_of(self, home_key: str) -> FunctionID | None:
        """In the controller's view."""
        return rendezvous.owner(home_key, [p.id for p in self.live()])

    def publish(self) -> None:
        self.epoch += 1
        members = {p.id: p.incarnation for p in self.live()}
        nodes = {n for n in self.nodes if n not in self.away}
        for proc in self.live():
            view = partial(proc.view, self.epoch, dict(members), set(nodes))
            self.send(view, lost=view)  # the controller repeats it until it is acknowledged

    def boot(self, name: FunctionID) -> None:
        self.incarnations += 1
        self.procs[name] = Proc(self, name, self.incarnations)

    def kill(self, name: FunctionID) -> None:
        """Its clients see a reset, its instances see their requests go; the view follows."""
        proc = self.procs[name]
        proc.dead = True
        for request in self.requests:
            if request.shard == name and request.state in ("held", "sent"):
                self.depart(request)
                request.to("reset")
        self.publish()

    # --- nodes and the store

    def new_id(self, key: str) -> InstanceID:
        self.ids += 1
        return InstanceID(f"{key.rpartition('/')[2]}-{self.ids}")

    def remember(self, i: Remember) -> None:
        copies = self.copies.setdefault(i.revision, {})
        if i.node:
            copies[i.instance] = Copy(i.instance, i.node, i.addr)
        else:
            copies.pop(i.instance, None)

    def stored(self, key: RevisionKey) -> tuple[bool, list[Copy]]:
        return key not in self.copies, list(self.copies.get(key, {}).values())

    def schedule(self, place: Place, epoch: int) -> object:
        """Emptiest node first; a gang as a whole or not at all."""
        answer: dict[InstanceID, Outcome] = {}
        done: list[tuple[Node, InstanceID]] = []
        for rev, ids in place.items:
            for instance in ids:
                outcome = Outcome(instance, reason="no node is up")
                for node in sorted(self.nodes.values(), key=lambda n: len(n.running) - n.room):
                    if not node.agent:
                        continue
                    reason = node.start(instance, rev, epoch)
                    outcome = Outcome(instance, reason=reason) if reason else Outcome(instance, node.id)
                    if not reason:
                        done.append((node, instance))
                    break
                answer[instance] = outcome
        if place.gang and any(o.reason for o in answer.values()):
            why = next(o.reason for o in answer.values() if o.reason)
            for node, instance in done:
                del node.running[instance]
            answer = {i: Outcome(i, reason=f"its gang can't be placed: {why}") for i in answer}
        return answer

    def all_running(self, key: RevisionKey | None = None) -> list[Running]:
        return [r for n in self.nodes.values() for r in n.running.values() if key in (None, r.key)]

    def make_ready(self, run: Running) -> None:
        node = self.nodes[run.node]
        if node.fail:
            node.end(run, node.fail, permanent=node.fail.startswith("permanent"))
        else:
            node.ready(run)

    # --- requests

    def request(self, shard: FunctionID, key: RevisionKey = RevisionKey("ns/a")) -> Request:
        request = Request(len(self.requests), key, shard)
        self.requests.append(request)
        self.procs[shard].submit(request)
        return request

    def arrive(self, request: Request) -> None:
        run = next((r for r in self.all_running() if r.id == request.instance), None)
        if run is None or run.state != "ready":
            request.state = "sent"
            self._break(request)
            return
        run.requests.add(request)
        run.peak = max(run.peak, len(run.requests))
        limit = self.revisions[run.key].concurrency
        assert not limit or len(run.requests) <= limit, f"{run.id} sees more than {limit} requests at once"

    def _break(self, request: Request) -> None:
        refuse = partial(self._refuse, request, request.instance)
        self.send(refuse, lost=refuse)  # a reset is never lost

    def _refuse(self, request: Request, instance: InstanceID) -> None:
        if request.state == "sent" and request.instance == instance:
            self.procs[request.shard].failed(request)

    def broke_off(self, request: Request) -> None:
        self.depart(request)
        self._break(request)

    def depart(self, request: Request) -> None:
        for run in self.all_running(request.key):
            if request in run.requests:
                run.requests.discard(request)
                self.nodes[run.node].drained(run)

    def finish(self, request: Request) -> None:
        self.depart(request)
        request.to("ok")
        self.procs[request.shard].finished(request)

    def finish_all(self) -> int:
        sent = [r for r in self.requests if r.state == "sent" and self._is_running(r)]
        for request in sent:
            if request.state == "sent" and self._is_running(request):
                self.finish(request)
        return len(sent)

    def _is_running(self, request: Request) -> bool:
        return any(request in r.requests for r in self.all_running(request.key))

    def check(self) -> None:
        for key, rev in self.revisions.items():
            count = len(self.all_running(key))
            assert not rev.scale.max or count <= rev.scale.max, f"{count} instances of {key}"
        for proc in self.live():
            for part in proc.shard.parts.values():
                part.throttler.check(self.now)
            for home in proc.homes.values():
                home.check()

    def settle(self, seconds: float = 30.0) -> None:
        """Everything is delivered, started and answered, until nothing is open."""
        for _ in range(round(seconds / 0.5)):
            self.flush()
            for run in self.all_running():
                if run.state == "starting":
                    self.make_ready(run)
            self.flush()
            self.finish_all()
            self.pass_time(0.5)
            self.check()
