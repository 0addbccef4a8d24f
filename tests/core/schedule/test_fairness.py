"""The order of a line: that of a look at every namespace each time, found without it."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.facts import NodeStatus, Resources
from kserve_ext.core.ids import NodeID
from kserve_ext.core.schedule.fairness import Shares, in_turn
from kserve_ext.core.schedule.filters import Candidate

NODE = NodeStatus(NodeID("n"), "n:1", 1, 1, Resources(10_000, 10_000), Resources())


class Waiting(NamedTuple):
    key: str
    namespace: str
    since: float
    needs: Resources
    priority: int = 0
    room_is_made: bool = False


class Counted(Shares):
    asked = 0

    def of(self, namespace: str) -> float:
        self.asked += 1
        return super().of(namespace)


def shares() -> Counted:
    return Counted([Candidate(NODE, NODE.free)], {"n1": 2.0})


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(1, 900), st.booleans()), max_size=30)
)
def test_the_smallest_share_is_next_also_while_shares_grow(drawn: list[tuple[int, int, int, bool]]) -> None:
    line = [Waiting(f"w{k:02}", f"n{n}", float(s), Resources(c, 1)) for k, (n, s, c, _) in enumerate(drawn)]
    placed = {f"w{k:02}" for k, (*_, fits) in enumerate(drawn) if fits}
    known, found = shares(), []
    for waiter in in_turn(line, known, 10.0):
        found.append(waiter)
        if waiter.key in placed:
            known.add(waiter.namespace, waiter.needs)
    by_looking: list[Waiting] = []
    known = shares()
    while len(by_looking) < len(line):
        left = [w for w in line if w not in by_looking]
        first = {
            n: min((w for w in left if w.namespace == n), key=lambda w: (w.since, w.key))
            for n in {w.namespace for w in left}
        }
        chosen = min(first.values(), key=lambda w: (known.of(w.namespace), w.since, w.namespace))
        by_looking.append(chosen)
        if chosen.key in placed:
            known.add(chosen.namespace, chosen.needs)
    assert found == by_looking


def test_a_long_line_of_many_namespaces_costs_a_look_or_two_for_each() -> None:
    line = [Waiting(f"w{k}", f"n{k}", 0.0, Resources(1, 1)) for k in range(500)]
    known = shares()
    for waiter in in_turn(line, known, 10.0):
        known.add(waiter.namespace, waiter.needs)
    assert known.asked <= 4 * len(line)
