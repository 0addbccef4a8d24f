"""Instances are placed while nodes change hands: none twice, each ask is answered once, each promise is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.facts import NodeStatus, Resources
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.core.schedule import facts as core
from kserve_ext.core.schedule.handover import Handover
from kserve_ext.core.schedule.machine import ScheduleMachine
from tests.core.schedule.handover_world import NEEDS, Node, Post, ViewOf, World
from tests.core.schedule.test_placement import revision, status

REVISION = revision(NEEDS.cpu_milli)._replace(needs=NEEDS)
ROOM = 3  # instances on a node
TIMEOUT_S = 0.5


class FullNode(Node):
    """Admits as the node agent does: by term, by id, by room."""

    def __init__(self, name: NodeID) -> None:
        super().__init__(name)
        self.running: set[InstanceID] = set()

    def admit(self, by: FunctionID, term: int, instance: InstanceID) -> tuple[str | None, bool]:
        """Why not, and whether it has another Schedule function."""
        if not self.start(by, term):
            return "another Schedule function", True
        if instance in self.running:
            return None, False
        if len(self.running) >= ROOM:
            return "full", False
        self.running.add(instance)
        return None, False

    def status(self) -> NodeStatus:
        self.seq += 1
        capacity = Resources(ROOM * NEEDS.cpu_milli, 65536)
        free = capacity._replace(cpu_milli=(ROOM - len(self.running)) * NEEDS.cpu_milli)
        return status(self.name, free, capacity=capacity, seq=self.seq)


class Placing(World):
    def __init__(self, nodes: int, functions: list[FunctionID], seed: int, harm: float) -> None:
        self.machines: dict[FunctionID, ScheduleMachine] = {}
        self.later: list[tuple[float, FunctionID | None, Callable[[], None]]] = []
        self.answers: dict[InstanceID, list[core.Answer]] = {}
        self.asked: dict[InstanceID, FunctionID] = {}
        self._replies: dict[tuple[FunctionID, int], Callable[[core.Answer], None]] = {}
        super().__init__(nodes, functions, seed, harm)
        self.full = {name: FullNode(name) for name in self.nodes}
        self.nodes.update(self.full)

    def join(self, function: FunctionID) -> None:
        machine = self.machines[function] = ScheduleMachine(function, len(self.views))
        self.functions[function] = Handover(function, machine.partition)
        self.paused.discard(function)
        self.publish([*(f for f in self.members if f != function), function])

    def deliver(self, to: FunctionID, what: Post) -> None:
        if isinstance(what, ViewOf):
            self.machines[to].rooms.view(set(what.functions))
        super().deliver(to, what)

    # --- calls, any of whose two ways may be lost

    def call(
        self,
        caller: FunctionID,
        ask: Callable[[Callable[[Callable[[], None]], None]], None],
        lost: Callable[[], None],
    ) -> None:
        """`ask` gets a function that takes the answer back; `lost` happens if nothing has come by the deadline."""
        open_ = [True]

        def once(then: Callable[[], None]) -> None:
            if open_:
                open_.clear()
                then()

        def reply(then: Callable[[], None]) -> None:
            if self.random.random() >= self.harm:
                self.after(0.001, caller, lambda: once(then))

        if self.random.random() >= self.harm:
            self.after(self.random.choice((0.001, 0.02)), None, lambda: ask(reply))
        self.after(TIMEOUT_S, caller, lambda: once(lost))

    def after(self, seconds: float, whose: FunctionID | None, then: Callable[[], None]) -> None:
        machine = self.machines.get(whose) if whose else None

        def mine() -> None:
            if whose is None or (whose in self.functions and self.machines[whose] is machine):
                then()

        self.later.append((self.now + seconds, whose, mine))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            super().run(0.01)
            due = [e for e in self.later if e[0] <= self.now and e[1] not in self.paused]
            self.later = [e for e in self.later if e not in due]
            self.random.shuffle(due)
            for _, _, then in due:
                then()
            for name, function in self.functions.items():
                if name not in self.paused:
                    self.machines[name].rooms.heard(
                        m.room() for f, m in self.machines.items() if f in self.functions
                    )
                    for node in function.terms:
                        if self.random.random() < 0.1:
                            self.send(name, self.full[node].status())

    # --- placing

    def ask(self, name: FunctionID, instance: InstanceID) -> None:
        self.asked[instance] = name
        self.answers[instance] = []
        self.schedule(name, [core.Wanted(instance, REVISION)], 0, self.answers[instance].append)

    def schedule(
        self, name: FunctionID, wanted: list[core.Wanted], hops: int, reply: Callable[[core.Answer], None]
    ) -> None:
        op, out = self.machines[name].schedule(wanted, hops=hops, now=self.now)
        self._replies[name, op] = reply
        self.carry_out(name, out)

    def carry_out(self, name: FunctionID, out: Iterable[core.Instruction]) -> None:
        for i in out:
            match i:
                case core.SendStart():
                    self._start(name, i)
                case core.Forward():
                    self._forward(name, i)
                case core.SendProbe():
                    said = self.full[i.node].status()
                    self.carry_out(name, self.machines[name].probed(i.op, i.node, said, self.now))
                case core.Answer():
                    self._replies.pop((name, i.op))(i)

    def _start(self, name: FunctionID, i: core.SendStart) -> None:
        machine, function, node = self.machines[name], self.functions[name], self.full[i.node]
        term = function.terms.get(i.node, 0)
        assert term, "a start to a node that we don't have"

        def ask(reply: Callable[[Callable[[], None]], None]) -> None:
            why, moved = node.admit(name, term, i.instance)
            said = node.status()

            def answered() -> None:
                if moved:
                    self.carry(name, function.refused(i.node, term, self.now))
                self.carry_out(name, machine.started(i.op, i.instance, i.node, i.addr, why, said))

            reply(answered)

        def lost() -> None:
            self.carry_out(name, machine.start_lost(i.op, i.instance, i.node, "lost", sent=True))

        self.call(name, ask, lost)

    def _forward(self, name: FunctionID, i: core.Forward) -> None:
        machine = self.machines[name]

        def ask(reply: Callable[[Callable[[], None]], None]) -> None:
            def answered(answer: core.Answer) -> None:
                reply(
                    lambda: self.carry_out(
                        name, machine.forwarded(i.op, i.function, answer.placed, answer.refused)
                    )
                )

            if i.function in self.functions:
                self.after(
                    0.0, i.function, lambda: self.schedule(i.function, list(i.wanted), i.hops, answered)
                )

        def lost() -> None:
            refused = [core.Refusal(w.instance, "lost", unknown=NodeID("?")) for w in i.wanted]
            self.carry_out(name, machine.forwarded(i.op, i.function, (), refused))

        self.call(name, ask, lost)


events = st.lists(
    st.tuples(
        st.sampled_from(["join", "leave", "kill", "pause", "resume", "ask", "ask", "ask"]), st.integers(0, 3)
    ),
    max_size=30,
)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 6), st.sampled_from([0.0, 0.2]), events)
def test_nothing_is_placed_twice_nothing_is_dropped(
    seed: int, nodes: int, harm: float, happens: list[tuple[str, int]]
) -> None:
    names = [FunctionID(f) for f in "ABCD"]
    world = Placing(nodes, names[:2], seed, harm)
    killed: set[FunctionID] = set()
    world.run(1.0)
    for k, (what, which) in enumerate(happens):
        name = names[which]
        if what == "join" and name not in world.members and name not in killed:
            if name in world.functions:  # it had only been taken for dead
                world.publish([*world.members, name])
            else:
                world.join(name)
        elif what == "leave" and len(world.members) > 1 and name in world.members:
            world.leave(name)
        elif what == "kill" and len(world.members) > 1 and name in world.members:
            killed.add(name)
            del world.functions[name]
            world.leave(name)
        elif what == "pause":
            world.paused.add(name)
        elif what == "resume":
            world.paused.discard(name)
        elif what == "ask" and name in world.functions and name not in world.paused:
            for member in range(3):
                world.ask(name, InstanceID(f"i{k}-{member}"))
        world.run(0.03)
    world.paused.clear()
    world.harm = 0.0
    world.run(4.0)
    where = Counter(instance for node in world.full.values() for instance in node.running)
    assert all(times == 1 for times in where.values()), "placed twice"
    assert all(len(node.running) <= ROOM for node in world.full.values())
    for instance, answers in world.answers.items():
        if world.asked[instance] in killed:
            assert len(answers) <= 1
            continue
        (answer,) = answers
        for place in answer.placed:
            assert instance in world.full[place.node].running, "promised, and not there"
        if not answer.placed:
            (refused,) = answer.refused
            assert refused.unknown or instance not in where, "refused, and there all the same"
