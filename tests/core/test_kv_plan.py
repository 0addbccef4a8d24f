"""Properties of the sender's planner: rows once, credit, size of batches, who goes first, and nobody starves."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.kv_landing import LandingPlan
from kserve_ext.core.kv_plan import LEAST, MOST, SHARE, Batch, Ended, Lane, SendPlan
from kserve_ext.core.kv_transfer import Geometry, Write

KIB, MIB = 1 << 10, 1 << 20
ROW = 32 * KIB
ALL = 1 << 40
ANY = Lane(ALL, ALL)


def plan_of(lane: Lane = ANY, *more: str) -> SendPlan:
    plan = SendPlan()
    for rung in ("tcp", *more):
        plan.know(rung, lane)
    return plan


def ready(
    plan: SendPlan, number: int, rows: int, rung: str = "tcp", row: int = ROW, scattered: bool = False
) -> None:
    """A transfer of one layer that is computed and reserved."""
    plan.open(number, rung, Geometry(1, row))
    step = 2 if scattered else 1
    plan.reserved(number, 0, range(0, step * rows, step))
    plan.computed(number, range(rows), rows, True, 0.0)


def drain(plan: SendPlan, rung: str = "tcp") -> list[Batch]:
    got = []
    while (batch := plan.next(rung, ALL, 0.0)) is not None:
        got.append(batch)
        plan.sent(batch, 0.0)
    return got


# --- one batch


@pytest.mark.parametrize("scattered", [False, True])
def test_small_writes_travel_together(scattered: bool) -> None:
    plan = plan_of()
    ready(plan, 1, 40, scattered=scattered)
    first, rest = drain(plan)
    assert first.bytes == MOST == 32 * ROW
    assert len(first.writes) == (32 if scattered else 1)
    assert (rest.bytes, rest.ending) == (8 * ROW, "")


def test_a_batch_is_bounded_by_the_rung() -> None:
    plan = plan_of(Lane(8 * ROW, 3))
    ready(plan, 1, 10, scattered=True)
    assert [len(batch.writes) for batch in drain(plan)] == [3, 3, 3, 1]
    ready(plan, 2, 20)
    assert [batch.bytes // ROW for batch in drain(plan)] == [8, 8, 4]


def test_small_pieces_are_not_sent_while_there_is_more() -> None:
    plan = plan_of()
    ready(plan, 1, 20)
    assert plan.next("tcp", LEAST - 1, 0.0) is None
    batch = plan.next("tcp", LEAST, 0.0)
    assert batch is not None
    assert batch.bytes == LEAST
    ready(plan, 2, 1)
    batch = plan.next("tcp", ROW, 0.0)
    assert batch is not None
    assert (batch.transfer, batch.bytes) == (2, ROW)


def test_a_block_that_no_batch_holds_is_refused() -> None:
    plan = plan_of(Lane(ROW - 1, 8))
    with pytest.raises(ValueError, match="tcp takes 32767 bytes at once, a block has 32768"):
        plan.open(1, "tcp", Geometry(1, ROW))
    assert plan.transfers == []


def test_a_large_block_goes_alone() -> None:
    plan = plan_of()
    ready(plan, 1, 3, row=3 * MIB)
    assert plan.next("tcp", 3 * MIB - 1, 0.0) is None
    assert [batch.bytes for batch in drain(plan)] == [3 * MIB] * 3


def test_transfers_are_opened_once_and_on_a_rung_that_is_there() -> None:
    plan = plan_of()
    plan.open(1, "tcp", Geometry(1, ROW))
    with pytest.raises(ValueError, match="1 is open already"):
        plan.open(1, "tcp", Geometry(1, ROW))
    with pytest.raises(ValueError, match="no rung rdma here; there is tcp"):
        plan.open(2, "rdma", Geometry(1, ROW))


def test_what_has_no_blocks_to_send_ends_with_an_empty_batch_and_needs_no_credit() -> None:
    plan = plan_of()
    plan.open(1, "tcp", Geometry(2, ROW))
    plan.computed(1, range(3), 3, True, 0.0)
    assert plan.next("tcp", 0, 0.0) is None
    plan.reserved(1, 3, [])
    batch = plan.next("tcp", 0, 0.0)
    assert batch == Batch(1, "tcp", (), 0, "")
    assert plan.sent(batch, 0.0) == Ended(1, "", 0.0, 0.0, 0.0, 0)


def test_one_that_can_not_become_whole_says_so() -> None:
    plan = plan_of()
    plan.open(1, "tcp", Geometry(1, ROW))
    plan.reserved(1, 0, range(5))
    plan.computed(1, range(3), 3, True, 0.0)
    (batch,) = drain(plan)
    assert batch.ending == "short"


# --- layers of a step that is under way


def test_layers_go_in_groups_that_are_worth_a_write_and_the_rest_with_the_step() -> None:
    plan = plan_of()
    plan.open(1, "tcp", Geometry(7, ROW, (6, 5, 4, 3, 2, 1, 0)))  # a layer of three blocks is 96 KiB
    plan.reserved(1, 0, range(3))
    went: list[tuple[int, list[int]]] = []
    for turns in range(1, 7):
        able = plan.ahead(1, range(3), 3, turns, 0.0)
        batch = plan.next("tcp", ALL, 0.0)
        assert able == (batch is not None)
        if batch is not None:
            assert batch.ending is None
            assert batch.bytes >= LEAST
            went.append((turns, [write.layer for write in batch.writes]))
            plan.sent(batch, 0.0)
    assert went == [(3, [6, 5, 4]), (6, [3, 2, 1])]
    plan.computed(1, range(3), 3, True, 0.0)
    (batch,) = drain(plan)
    assert ([write.layer for write in batch.writes], batch.ending) == ([0], "")


def test_a_step_of_one_batch_is_sent_behind_it_and_one_that_is_reserved_late_from_then_on() -> None:
    plan = plan_of()
    plan.open(1, "tcp", Geometry(4, ROW))
    assert not plan.ahead(1, range(3), 3, 3, 0.0), "384 KiB in all"
    assert not plan.ahead(1, range(9), 9, 1, 0.0), "nothing is reserved"
    assert plan.next("tcp", ALL, 0.0) is None
    plan.reserved(1, 0, range(9))
    batch = plan.next("tcp", ALL, 0.0)
    assert batch is not None
    assert batch.writes == (Write(0, 0, 0, 9),)
    assert plan.ahead(1, range(9), 9, 2, 0.0)
    assert not plan.ahead(2, range(9), 9, 1, 0.0), "no such transfer"


def test_the_time_between_layers_is_no_time_of_the_link() -> None:
    plan = plan_of()
    plan.open(1, "tcp", Geometry(2, MIB))
    plan.reserved(1, 0, [0])
    plan.ahead(1, [0], 1, 1, 1.0)
    first = plan.next("tcp", ALL, 1.0)
    assert first is not None
    plan.sent(first, 2.0)
    assert plan.next("tcp", ALL, 2.0) is None
    plan.computed(1, [0], 1, True, 10.0)
    last = plan.next("tcp", ALL, 10.0)
    assert last is not None
    assert plan.sent(last, 11.0) == Ended(1, "", 2.0, 1.0, 8.0, 0)


# --- who goes first


def test_a_short_transfer_overtakes_a_long_one() -> None:
    plan = plan_of()
    ready(plan, 1, 320)
    assert plan.next("tcp", ALL, 0.0) is not None
    ready(plan, 2, 40)
    assert [batch.transfer for batch in drain(plan)] == [2, 2] + 9 * [1]


def test_rungs_do_not_wait_for_each_other() -> None:
    plan = plan_of(ANY, "rdma")
    ready(plan, 1, 320)
    ready(plan, 2, 640, "rdma")
    assert plan.next("tcp", 0, 0.0) is None
    assert {batch.transfer for batch in drain(plan, "rdma")} == {2}
    assert {batch.transfer for batch in drain(plan, "tcp")} == {1}


def test_the_eldest_is_not_starved_by_an_endless_row_of_short_ones() -> None:
    """SHARE times its bytes and SHARE batches are all that goes before it is through."""
    plan = plan_of()
    ready(plan, 0, 320)
    number, gone = 0, 0
    while 0 in plan.transfers:
        number += 1
        ready(plan, number, 16)
        batch = plan.next("tcp", ALL, 0.0)
        assert batch is not None
        plan.sent(batch, 0.0)
        gone += batch.bytes
        assert gone <= SHARE * (320 * ROW + MOST)
    assert gone > SHARE * 320 * ROW / 2  # but only its share


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 120), st.integers(0, 3)), min_size=20, max_size=150))
def test_nobody_waits_for_longer_than_its_bound(coming: list[tuple[int, int]]) -> None:
    """(rows, batches until the next one comes). The bound is that of the planner's head, for each of them."""
    plan = plan_of(Lane(8 * ROW, 100))
    left: dict[int, int] = {}
    bound: dict[int, int] = {}
    gone = 0
    for number, (rows, batches) in enumerate([*coming, (1, 10_000)]):
        ready(plan, number, rows)
        left[number] = rows * ROW
        bound[number] = gone + SHARE * (sum(left.values()) + 8 * ROW)
        for _ in range(batches):
            batch = plan.next("tcp", ALL, 0.0)
            if batch is None:
                break
            plan.sent(batch, 0.0)
            gone += batch.bytes
            left[batch.transfer] -= batch.bytes
            assert batch.ending is None or gone <= bound[batch.transfer]
    assert plan.transfers == []


class Arrival(NamedTuple):
    rows: int
    layers: int
    skip: int
    chunks: list[int]


arrivals = st.builds(
    Arrival,
    st.integers(1, 60),
    st.integers(1, 3),
    st.integers(0, 20),
    st.lists(st.integers(1, 30), max_size=3),
)


class World:
    """A sender and what it knows, a receiver, and a rung that gives credit back late."""

    def __init__(self, data: st.DataObject, lane: Lane, window: int) -> None:
        self.data = data
        self.plan = SendPlan()
        for rung in "ab":
            self.plan.know(rung, lane)
        self.lane = lane
        self.credits = {"a": window, "b": window}
        self.under_way: list[Batch] = []
        self.landings: dict[int, LandingPlan] = {}
        self.sources: dict[int, list[int]] = {}
        self.chunks: dict[int, list[int]] = {}
        self.rungs: dict[int, str] = {}
        self.cancelled: set[int] = set()
        self.through: set[int] = set()  # handed out in full
        self.ended: dict[int, str] = {}
        self.now = 0.0
        self.left: dict[int, int] = {}  # bytes not handed out
        self.bound: dict[int, int] = {}  # bytes on its rung within which one that stays ready must be through
        self.gone: dict[str, int] = defaultdict(int)

    def arrive(self, number: int, arrival: Arrival) -> None:
        draw = self.data.draw
        rung = draw(st.sampled_from("ab"))
        skip = min(arrival.skip, arrival.rows)
        targets = draw(st.permutations(range(1000, 1000 + 2 * (arrival.rows - skip))))[: arrival.rows - skip]
        self.sources[number] = [100 * number + at for at in draw(st.permutations(range(arrival.rows)))]
        self.landings[number] = LandingPlan(arrival.layers, targets)
        self.rungs[number] = rung
        self.plan.open(number, rung, Geometry(arrival.layers, ROW))
        self.plan.reserved(number, skip, targets)
        self.plan.reserved(number, 0, [7])  # changes nothing
        self.left[number] = len(targets) * arrival.layers * ROW
        self.chunks[number] = sorted({min(c, arrival.rows) for c in arrival.chunks} | {arrival.rows})
        if len(self.chunks[number]) == 1:  # computed as soon as it comes: ready for all its life
            elders = sum(self.left[n] for n in self.plan.transfers if self.rungs[n] == rung)
            most = min(self.lane.largest, MOST)
            self.bound[number] = self.gone[rung] + SHARE * (elders + most)
        self.compute(number)

    def compute(self, number: int) -> None:
        if self.chunks[number]:
            whole = self.chunks[number].pop(0)
            self.plan.computed(number, self.sources[number], whole, not self.chunks[number], self.now)

    def cancel(self, number: int) -> None:
        live = number in self.plan.transfers
        ended = self.plan.cancel(number, "cancelled")
        reading = any(batch.transfer == number for batch in self.under_way)
        assert (ended is None) == (reading or not live)
        if live and number not in self.through:
            self.cancelled.add(number)
        self.note(ended)

    def note(self, ended: Ended | None) -> None:
        if ended is not None:
            assert ended.transfer not in self.ended
            assert not any(batch.transfer == ended.transfer for batch in self.under_way)
            self.ended[ended.transfer] = ended.reason

    def step(self) -> bool:
        batch = self._next()
        if batch is None:
            return False
        assert batch.transfer not in self.cancelled
        assert batch.rung == self.rungs[batch.transfer]
        assert batch.bytes == ROW * sum(write.blocks for write in batch.writes) <= self.credits[batch.rung]
        assert batch.bytes <= self.lane.largest
        assert len(batch.writes) <= self.lane.pieces
        for write in batch.writes:
            self.land(batch.transfer, write)
        self.left[batch.transfer] -= batch.bytes
        least = min(LEAST, self.lane.largest)
        full = batch.bytes + ROW > least or len(batch.writes) == self.lane.pieces
        assert full or self.left[batch.transfer] == 0 or self.chunks[batch.transfer]
        self.credits[batch.rung] -= batch.bytes
        self.gone[batch.rung] += batch.bytes
        if batch.ending is not None:
            assert self.left[batch.transfer] == 0
            assert not self.chunks[batch.transfer]
            assert self.gone[batch.rung] <= self.bound.get(batch.transfer, ALL)
            self.through.add(batch.transfer)
        self.under_way.append(batch)
        return True

    def _next(self) -> Batch | None:
        found = (self.plan.next(rung, self.credits[rung], self.now) for rung in "ab")
        return next((batch for batch in found if batch is not None), None)

    def land(self, number: int, write: Write) -> None:
        landing = self.landings[number]
        assert landing.expects(write.layer, write.target, write.blocks)
        landing.landed(write.layer, write.target, write.blocks)
        whole = self.sources[number]
        assert all(write.source + at in whole for at in range(write.blocks))

    def credit(self, index: int) -> None:
        batch = self.under_way.pop(index % len(self.under_way))
        self.credits[batch.rung] += batch.bytes
        self.note(self.plan.sent(batch, self.now))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(arrivals, min_size=1, max_size=6),
    st.sampled_from([Lane(ROW, 1), Lane(6 * ROW, 4), Lane(MIB, 8), Lane(4 * MIB, 1000)]),
    st.integers(1, 4),
    st.data(),
)
def test_whatever_happens(coming: list[Arrival], lane: Lane, windows: int, data: st.DataObject) -> None:
    """Rows once, never beyond the credit, nothing of what was cancelled, nobody starves, and each ends once."""
    world = World(data, lane, windows * lane.largest)
    waiting = list(enumerate(coming))
    numbers = st.sampled_from(range(len(coming)))
    for _ in range(data.draw(st.integers(0, 40))):
        world.now += 1.0
        match data.draw(st.sampled_from("aaccnnnnnnssss" + "x")):
            case "a" if waiting:
                world.arrive(*waiting.pop(0))
            case "c":
                number = data.draw(numbers)
                if number in world.chunks:
                    world.compute(number)
            case "x":
                world.cancel(data.draw(numbers))
            case "s" if world.under_way:
                world.credit(data.draw(st.integers(0, 100)))
            case _:
                world.step()
    while waiting:
        world.arrive(*waiting.pop(0))
    for number in range(len(coming)):
        while world.chunks[number]:
            world.compute(number)
    while world.under_way or world.step():
        while world.step():
            pass
        world.credit(0)
    assert world.plan.transfers == []
    assert world.ended == {n: "cancelled" if n in world.cancelled else "" for n in range(len(coming))}
    assert all(world.landings[n].whole for n in range(len(coming)) if n not in world.cancelled)


# --- the end, and what it took


def test_a_transfer_is_over_when_nobody_reads_its_blocks() -> None:
    plan = plan_of()
    ready(plan, 1, 320)
    batches = [plan.next("tcp", ALL, 0.0) for _ in range(2)]
    assert plan.cancel(1, "the client has gone") is None
    assert plan.cancel(1, "another reason") is None
    assert plan.next("tcp", ALL, 0.0) is None
    first, second = batches
    assert first is not None
    assert second is not None
    assert plan.sent(first, 1.0) is None
    assert plan.sent(second, 2.0) == Ended(1, "the client has gone", 2.0, 1.0, 0.0, 0)
    assert plan.cancel(1, "again") is None
    plan.computed(1, [1], 1, True, 3.0)
    plan.reserved(1, 0, [1])
    assert plan.next("tcp", ALL, 3.0) is None


def test_a_write_that_failed_is_why_its_transfer_ended_even_with_the_last_batch() -> None:
    plan = plan_of()
    ready(plan, 1, 4)
    batch = plan.next("tcp", ALL, 0.0)
    assert batch is not None
    assert batch.ending == ""
    ended = plan.sent(batch, 0.0, "channel-closed")
    assert ended is not None
    assert ended.reason == "channel-closed"


def test_what_the_link_took_is_told_apart_from_waiting_for_the_sender() -> None:
    """Two transfers: the first waits 4 s for its second chunk, and 5 rows of the other go in between its own."""
    plan = plan_of(Lane(5 * ROW, 9))
    plan.open(1, "tcp", Geometry(1, ROW))
    plan.reserved(1, 0, range(10))
    plan.computed(1, range(5), 5, False, 10.0)
    batch = plan.next("tcp", ALL, 11.0)
    assert batch is not None
    assert plan.sent(batch, 11.5) is None
    ready(plan, 2, 5)
    other = plan.next("tcp", ALL, 12.0)
    assert other is not None
    assert other.transfer == 2
    plan.sent(other, 12.5)
    plan.computed(1, range(10), 10, True, 15.5)
    ready(plan, 3, 2)
    batches = []
    for _ in range(2):
        batch = plan.next("tcp", ALL, 16.0)
        assert batch is not None
        batches.append((batch.transfer, plan.sent(batch, 17.0)))
    assert batches == [(3, Ended(3, "", 1.0, 1.0, 0.0, 0)), (1, Ended(1, "", 2.5, 0.5, 3.5, 2 * ROW))]
