"""One Schedule machine whose calls overlap: nobody is started in the room of a higher class that waits for it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.facts import NodeStatus, Resources, Revision
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.core.schedule import facts as core
from kserve_ext.core.schedule.line import BOOKED_S, HEARD_S, Waiter
from kserve_ext.core.schedule.machine import ScheduleMachine
from kserve_ext.core.schedule.rooms import Room
from tests.core.schedule.test_placement import revision, status

LARGE = Resources(8000, 64_000)
Open = core.SendStart | core.SendProbe | core.Forward


class Machine:
    """Two nodes for two instances each, and another partition that seems to have room."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.machine = ScheduleMachine(FunctionID("s0"))
        self.machine.rooms.view({FunctionID("s0"), FunctionID("s1")})
        self.now, self.numbers = 0.0, 0
        self.revisions = [
            revision(self.random.choice((1000, 2000)), 1, key=f"a/m{k}", uri="")._replace(priority=k)
            for k in range(4)
        ]
        #: what runs, by node
        self.runs: dict[NodeID, list[int]] = {NodeID(name): [1000, 1000] for name in ("n1", "n2")}
        self.open: list[Open] = []
        for node in self.runs:
            self.learn(node)

    def step(self) -> None:
        pick = self.random
        self.now += pick.choice((0.001, 0.01, 0.05, 0.3))
        what = pick.choice(("ask", "ask", "answer", "answer", "end", "tick"))
        busy = [node for node, of in self.runs.items() if of]
        if what == "ask":
            self.ask(pick.choice(self.revisions))
        elif what == "answer" and self.open:
            self.answer(self.open.pop(pick.randrange(len(self.open))))
        elif what == "end" and busy:
            node = pick.choice(busy)
            self.runs[node].pop()
            self.learn(node)
        elif what == "tick":
            told = [i.key for i in self.machine.tick(self.now) if isinstance(i, core.TellRoom)]
            assert len(set(told)) == len(told)

    def ask(self, of: Revision) -> None:
        for node in self.runs:
            self.learn(node)
        self.machine.rooms.known.clear()
        if self.random.random() < 0.4:
            self.machine.rooms.heard([Room(FunctionID("s1"), (1, self.number()), LARGE, LARGE, 2, LARGE)])
        waiters = self.machine.line.waiters
        own = waiters.get(of.key)
        booked = own is not None and own.told_at is not None
        higher = [w for w in waiters.values() if w.priority > of.priority and self.is_next(w)]
        wanted = [core.Wanted(InstanceID(f"i{self.number()}"), of)]
        out = self.machine.schedule(wanted, who=core.Standing("home"), now=self.now)[1]
        for i in out:
            candidate = self.machine.partition.candidate(i.node) if isinstance(i, core.SendStart) else None
            if candidate is not None and not booked:
                room = candidate.free.plus(of.needs)
                over = [w.key for w in higher if self.is_next(w) and w.members[0].needs.fits(room)]
                assert not over, f"{of.key} overtakes {over}"
        self.carry(out)

    def is_next(self, waiter: Waiter) -> bool:
        """Nothing but room keeps it waiting."""
        passed_over = waiter.asking or waiter.late or self.now < waiter.rests_until
        return not (passed_over or waiter.told_at is not None)

    def answer(self, i: Open) -> None:
        machine, how = self.machine, self.random.choice(("well", "well", "full", "older", "lost", "unsent"))
        if isinstance(i, core.SendProbe):
            self.carry(machine.probed(i.op, i.node, self.status(i.node), self.now))
        elif isinstance(i, core.Forward):
            placed = [core.Place(w.instance, NodeID("x"), "x:1") for w in i.wanted] if how == "lost" else []
            refused = [core.Refusal(w.instance, "full") for w in i.wanted] if not placed else []
            self.carry(machine.forwarded(i.op, i.function, placed, refused))
        elif how in ("lost", "unsent"):
            self.carry(machine.start_lost(i.op, i.instance, i.node, how, sent=how == "lost"))
        else:
            needs = i.revision.needs.cpu_milli
            why = how if how != "well" else "full" if self.free(i.node) < needs else None
            if why is None:
                self.runs[i.node].append(needs)
            said = self.status(i.node)
            stale = how == "older"
            self.carry(machine.started(i.op, i.instance, i.node, i.addr, why, said, stale=stale))

    def carry(self, out: Sequence[core.Instruction]) -> None:
        self.open += [i for i in out if isinstance(i, Open) and i.op]

    def end(self) -> None:
        """All calls are answered, and nobody comes any more."""
        while self.open:
            self.answer(self.open.pop())
        waiters = self.machine.line.waiters
        assert not any(w.asking for w in waiters.values())
        self.machine.tick(self.now + BOOKED_S)
        self.machine.tick(self.now + BOOKED_S + HEARD_S)
        assert not waiters
        for node in self.runs:
            assert not self.machine.partition.starts(node), "a booking is never released"

    def learn(self, node: NodeID) -> None:
        self.machine.partition.learn(self.status(node), self.now)

    def free(self, node: NodeID) -> int:
        return 2000 - sum(self.runs[node])

    def status(self, node: NodeID) -> NodeStatus:
        return status(node, Resources(self.free(node), 8192), seq=self.number())

    def number(self) -> int:
        self.numbers += 1
        return self.numbers


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(10, 80))
def test_nobody_overtakes_a_higher_class_however_calls_overlap(seed: int, steps: int) -> None:
    machine = Machine(seed)
    for _ in range(steps):
        machine.step()
    machine.end()
