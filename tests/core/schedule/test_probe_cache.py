"""The probe cache against its bounds, in any order of events; and what a Schedule function decides by, when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.facts import Resources
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.core.schedule import facts as core
from kserve_ext.core.schedule.filters import Candidate
from kserve_ext.core.schedule.knowledge import ASKED, FEW, MISSED, TOLD_S, State, sample, source
from kserve_ext.core.schedule.machine import ScheduleMachine
from kserve_ext.core.schedule.probe_cache import MOST_USES, ProbeCache, Rates, choose_of_pool, fullness, uses
from kserve_ext.core.schedule.rooms import Room
from tests.core.schedule.test_placement import revision, status

NODES = [NodeID(f"n{k}") for k in range(8)]
RATES = Rates(pool=4, age_s=1.0, probes=0.5, removed=0.125)
events = st.lists(
    st.tuples(
        st.sampled_from(["answered", "sent", "lost", "pool"]), st.sampled_from(NODES), st.floats(0, 0.4)
    ),
    max_size=60,
)


@given(events)
def test_no_answer_is_used_too_often_or_too_late_and_the_pool_is_bounded(
    script: list[tuple[str, NodeID, float]],
) -> None:
    cache = ProbeCache(RATES, "s")
    most, now = uses(RATES, len(NODES)), 0.0
    answered: dict[NodeID, float] = {}
    used: dict[NodeID, int] = {}
    sends = asked = 0
    for what, node, after in script:
        now += after
        if what == "answered":
            cache.answered(node, now)
            answered[node], used[node] = now, 0
        elif what == "lost":
            cache.lost(node)
            answered.pop(node, None)
        elif what == "sent":
            cache.sent(node, len(NODES), lambda n: 0.0)
            used[node] = used.get(node, 0) + 1
            sends += 1
            asked += len(cache.ahead(NODES, now))
        pool = cache.pool(now)
        assert len(pool) <= RATES.pool
        assert all(n in answered and now - answered[n] <= RATES.age_s and used[n] < most for n in pool)
        assert asked <= sends * RATES.probes
    assert cache.probes == asked


def test_what_is_taken_away_is_the_oldest_and_the_fullest_in_turns() -> None:
    cache = ProbeCache(Rates(pool=4, removed=1.0, probes=3.0), "s")
    for node in NODES[:4]:
        cache.answered(node, 0.0)
    full = {NODES[2]: 0.9}
    cache.sent(NODES[7], 100, lambda n: full.get(n, 0.1))
    assert cache.pool(0.0) == [NODES[1], NODES[2], NODES[3]]
    cache.sent(NODES[7], 100, lambda n: full.get(n, 0.1))
    assert cache.pool(0.0) == [NODES[1], NODES[3]]


@given(st.integers(1, 64), st.floats(0, 4), st.floats(0, 2), st.integers(1, 2000))
def test_an_answer_is_used_as_often_as_the_formula_says(
    pool: int, probes: float, removed: float, nodes: int
) -> None:
    rates = Rates(pool=pool, probes=probes, removed=removed)
    found = uses(rates, nodes)
    assert 1 <= found <= MOST_USES
    gained = (1 - min(pool, nodes) / nodes) * probes - removed
    if gained > 0:
        assert found <= max(1.0, (1 + rates.delta) / gained)
    else:
        assert found == MOST_USES


def of(name: str, free: int, models: tuple[str, ...] = ()) -> Candidate:
    known = status(name, Resources(free, 8192), capacity=Resources(10_000, 8192), models=models)
    return Candidate(known, known.free)


def test_the_best_of_the_cold_and_else_the_least_full() -> None:
    wanted = revision(1000, uri="m")
    hot, cold, cached = of("a", 500), of("b", 9000), of("c", 8000, models=("m",))
    pool = [hot, cold, cached, of("d", 1000, models=("m",))]
    assert choose_of_pool(wanted, pool, 0.5) == cached
    assert (
        choose_of_pool(wanted, pool, 0.5, tried=[NodeID("c"), NodeID("b")]) == pool[3]
    )  # hot, but the only one that fits
    assert choose_of_pool(revision(20_000), pool, 0.5) is None
    assert fullness(of("e", 2500)) == 0.75


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 16), st.integers(0, 300), st.booleans())
def test_nothing_is_asked_while_all_are_told_of_and_else_enough(
    nodes: int, told: int, pool: int, room: int, elsewhere: bool
) -> None:
    told, pool, room = min(told, nodes), min(pool, nodes), min(room, nodes)
    found = source(State(nodes, told, pool, room, elsewhere))
    if told == nodes:
        assert found.kind == "told"
    elif found.kind == "ask":
        assert min(nodes, ASKED) <= found.ask <= nodes
        if 0 < room < nodes and found.ask < nodes:
            assert (1 - room / nodes) ** found.ask <= MISSED + 1e-9
    elif found.kind == "elsewhere":
        assert elsewhere
        assert not room
    else:
        assert pool


def test_nearly_full_or_small_partitions_are_asked_whole() -> None:
    assert sample(210, 210) == ASKED
    assert sample(210, 105) == 5
    assert sample(210, 4) == 210
    assert sample(210, 0) == 210
    assert sample(FEW, 1) == FEW


# --- in the machine


def machine(free: dict[str, int], now: float = 100.0) -> ScheduleMachine:
    found = ScheduleMachine(FunctionID("s"))
    for name, cpu in free.items():
        found.partition.learn(of(name, cpu).status, now)
    return found


def ask(m: ScheduleMachine, now: float, count: int = 1) -> tuple[int, list[core.Instruction]]:
    ids = (InstanceID(f"i{k}-{now}") for k in range(count))
    return m.schedule([core.Wanted(i, revision(1000)) for i in ids], now=now)


def test_while_nodes_are_told_of_nobody_is_asked() -> None:
    m = machine({f"n{k}": 5000 for k in range(6)})
    _, out = ask(m, 100.0 + TOLD_S - 0.01)
    assert [type(i) for i in out] == [core.SendStart]


def test_silence_is_made_up_for_by_asking_and_then_by_what_was_answered() -> None:
    m = machine({f"n{k}": 5000 for k in range(6)})
    late = 100.0 + TOLD_S
    op, out = ask(m, late)
    assert [type(i) for i in out] == [core.SendProbe] * ASKED
    room = {i.node: 3000 + 1000 * k for k, i in enumerate(out) if isinstance(i, core.SendProbe)}
    started: list[core.Instruction] = []
    for name, free in room.items():
        assert not started
        started = m.probed(op, name, of(name, free).status._replace(seq=9), late)
    (start,) = started
    assert isinstance(start, core.SendStart)
    assert room[start.node] == max(room.values())
    _, out = ask(m, late + 0.5)
    assert isinstance(out[0], core.SendStart)
    _, out = ask(m, late + 1.5)  # these answers are too old
    assert isinstance(out[0], core.SendProbe)


def test_who_does_not_answer_is_asked_once_and_then_believed_as_last_heard() -> None:
    m = machine({f"n{k}": 5000 for k in range(5)})
    late = 100.0 + TOLD_S
    op, out = ask(m, late)
    asked: list[NodeID] = []
    start: core.Instruction | None = None
    while start is None:
        probes = [i for i in out if isinstance(i, core.SendProbe)]
        assert probes, out
        asked += [i.node for i in probes]
        for i in probes:
            out = m.probed(op, i.node, None, late)
        start = next((i for i in out if isinstance(i, core.SendStart)), None)
    assert sorted(asked) == [f"n{k}" for k in range(5)]


def test_where_nobody_had_room_another_partition_is_asked_first() -> None:
    m = machine({f"n{k}": 0 for k in range(5)})
    m.view({NodeID(f"n{k}") for k in range(5)}, {FunctionID("s"), FunctionID("t")})
    m.rooms.heard([Room(FunctionID("t"), (1, 1), Resources(9000, 9000), Resources(9000, 9000), 1)])
    late = 100.0 + TOLD_S
    op, out = ask(m, late)
    assert [type(i) for i in out] == [core.Forward]
    out = m.forwarded(op, FunctionID("t"), (), (core.Refusal(InstanceID("i0"), "full"),))
    assert [type(i) for i in out] == [core.SendProbe] * 5  # what was heard is old, after all
