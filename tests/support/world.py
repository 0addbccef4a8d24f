"""A whole cluster in one process and virtual time: Dispatch processes (shard and homes), nodes that admit, one
Schedule function, a controller, and a network that loses and delays what the test wants it to.

The Dispatch process is the simulator's (kserve_ext/sim/parts/dispatch.py), which does what the shells in
activator_replacement do, so a run is as good as a real one as far as decisions go. Nodes count for themselves what
runs and how many requests each instance sees at once, and the world keeps account of every request: this is what
invariants are checked against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from kserve_ext.core import rendezvous
from kserve_ext.core.dispatch.facts import AskNode, Outcome, Place, Remember, StopInstance
from kserve_ext.core.dispatch.take_over import Copy
from kserve_ext.core.facts import Revision
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.sim.parts.dispatch import Dispatch, Told
from tests.support.world_dispatch import sessions
from tests.support.world_nodes import REVISION, Node, Request, Running

TICK_S = 0.25
Proc = Dispatch[Request]


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

    def call(
        self, caller: Proc, to: FunctionID, kind: str, ask: Callable[[Proc], object], told: Told | None
    ) -> None:
        if told is None:
            proc = self.procs[to]
            self.send(lambda: (ask(proc), None)[1])
        else:
            self._there_and_back(partial(ask, self.procs[to]), told)

    def _there_and_back(self, ask: Callable[[], object], told: Told) -> None:
        def request() -> None:
            answer = ask()
            self.send(partial(told, answer), lost=partial(told, "lost"))

        self.send(request, lost=partial(told, "lost"))

    def place(self, caller: Proc, place: Place, told: Told) -> None:
        self._there_and_back(partial(self.schedule, place, caller.epoch), told)

    def stop(self, caller: Proc, stop: StopInstance, epoch: int) -> None:
        self.send(partial(self.nodes[stop.node].stop, stop.instance, stop.revision, epoch))

    def recall(self, caller: Proc, ask: AskNode, epoch: int, told: Told) -> None:
        node = self.nodes[ask.node]
        self._there_and_back(lambda: node.recall(epoch, ask.revision) if node.agent else "lost", told)

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

    def say(self, what: str) -> None:
        self.log.append(what)

    # --- who is there

    def live(self) -> list[Proc]:
        return [p for p in self.procs.values() if not p.dead]

    def home_of(self, home_key: str) -> FunctionID | None:
        """In the controller's view."""
        return rendezvous.owner(home_key, [p.id for p in self.live()])

    def publish(self) -> None:
        self.epoch += 1
        self.say(f"view {self.epoch}: {' '.join(sorted(p.id for p in self.live()))}")
        members = {p.id: p.incarnation for p in self.live()}
        nodes = {n for n in self.nodes if n not in self.away}
        for proc in self.live():
            view = partial(proc.view, self.epoch, dict(members), set(nodes))
            self.send(view, lost=view)  # the controller repeats it until it is acknowledged

    def boot(self, name: FunctionID) -> None:
        self.incarnations += 1
        self.procs[name] = Dispatch(self, name, self.incarnations, sessions, validate=True)

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
                    self.say(f"place {instance} on {node.id}: {reason or 'admitted'}")
                    if not reason:
                        done.append((node, instance))
                    break
                answer[instance] = outcome
        if place.gang and any(o.reason for o in answer.values()):
            why = next(o.reason for o in answer.values() if o.reason)
            for node, instance in done:
                del node.running[instance]
                self.say(f"release {instance} on {node.id}")
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

    def request(self, shard: FunctionID, key: RevisionKey = REVISION) -> Request:
        request = Request(len(self.requests), key, shard)
        self.requests.append(request)
        self.procs[shard].submit(request)
        return request

    def serve(self, request: Request) -> None:
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
