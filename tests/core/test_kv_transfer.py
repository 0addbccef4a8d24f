"""One transfer's plan: every row exactly once, in order, as few writes as the runs allow, whatever comes when."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.kv_landing import LandingPlan
from kserve_ext.core.kv_transfer import Geometry, TransferPlan, Write, runs

ALL = 1 << 30


def test_neighbours_on_both_sides_are_one_run() -> None:
    assert runs([4, 5, 6, 9], [1, 2, 3, 4]) == [3, 4]
    assert runs([4, 5, 6], [1, 2, 5]) == [2, 3]
    assert runs([], []) == []


def test_a_block_whose_layers_lie_behind_each_other_is_one_piece() -> None:
    assert Geometry.of(32, 4096) == Geometry(32, 4096)
    assert Geometry.of(32, 4096, cross_layer=True) == Geometry(1, 32 * 4096)


blocks = st.lists(st.integers(0, 40), unique=True, min_size=1, max_size=16)


@st.composite
def transfers(draw: st.DrawFn) -> tuple[list[int], list[int], int, int]:
    sources = draw(blocks)
    skip = draw(st.integers(0, len(sources)))
    count = len(sources) - skip
    return (
        sources,
        draw(st.lists(st.integers(50, 90), unique=True, min_size=count, max_size=count)),
        skip,
        draw(st.integers(1, 4)),
    )


def taken(plan: TransferPlan, landing: LandingPlan, rows: int, pieces: int) -> list[tuple[int, int, int]]:
    """(layer, source, target) of what is handed out; the account of the receiver agrees with each write."""
    left, ready = plan.left, plan.ready
    writes = plan.take(rows, pieces)
    count = sum(write.blocks for write in writes)
    assert len(writes) <= pieces
    assert count <= rows
    assert plan.left == left - count
    assert bool(writes) == (ready > 0 and rows > 0 and pieces > 0)
    for write in writes:
        assert landing.expects(write.layer, write.target, write.blocks)
        landing.landed(write.layer, write.target, write.blocks)
        assert not landing.expects(write.layer, write.target, write.blocks)
    return [(w.layer, w.source + i, w.target + i) for w in writes for i in range(w.blocks)]


@settings(max_examples=300)
@given(transfers(), st.data())
def test_each_row_once_chunk_by_chunk(
    transfer: tuple[list[int], list[int], int, int], data: st.DataObject
) -> None:
    sources, targets, skip, layers = transfer
    plan, landing = TransferPlan(layers), LandingPlan(layers, targets)
    steps = sorted([*data.draw(st.lists(st.integers(0, len(sources)), max_size=4)), len(sources)])
    reserve_at = data.draw(st.integers(0, len(steps) - 1))
    written: list[tuple[int, int, int]] = []
    for number, count in enumerate(steps):
        if number == reserve_at:
            plan.reserved(skip, targets)
        plan.computed(sources[: data.draw(st.integers(count, len(sources)))], count, number == len(steps) - 1)
        assert number >= reserve_at or plan.ready == 0
        written += taken(plan, landing, data.draw(st.integers(0, 12)), data.draw(st.integers(0, 6)))
        position = {pair: at for at, pair in enumerate(zip(sources[skip:], targets, strict=True))}
        assert all(position[source, target] + skip < count for _, source, target in written)
    rounds = 0
    while not plan.finished:
        rounds += 1
        assert rounds < 500
        written += taken(plan, landing, data.draw(st.integers(1, 8)), data.draw(st.integers(1, 3)))
    pairs = list(zip(sources[skip:], targets, strict=True))
    assert sorted(written) == sorted((layer, *pair) for layer in range(layers) for pair in pairs)
    assert landing.whole
    assert not plan.short
    assert plan.ready == plan.left == 0
    assert plan.take(ALL, ALL) == []


@settings(max_examples=300)
@given(transfers(), st.data())
def test_layers_of_a_step_go_as_they_are_computed_each_row_once_and_none_before(
    transfer: tuple[list[int], list[int], int, int], data: st.DataObject
) -> None:
    """Steps of some blocks each; within a step the layers one after the other, in the model's order."""
    sources, targets, skip, layers = transfer
    order = data.draw(st.permutations(range(layers)))
    plan, landing = TransferPlan(layers, order), LandingPlan(layers, targets)
    ends = sorted({*data.draw(st.lists(st.integers(1, len(sources)), max_size=3)), len(sources)})
    reserve_at = data.draw(st.integers(0, len(ends) - 1))
    whole: set[tuple[int, int]] = set()  # layer, block
    written: list[tuple[int, int, int]] = []

    def some() -> None:
        now = taken(plan, landing, data.draw(st.integers(0, 9)), data.draw(st.integers(0, 4)))
        assert all((layer, source) in whole for layer, source, _ in now)
        written.extend(now)

    for number, end in enumerate(ends):
        if number == reserve_at:
            plan.reserved(skip, targets)
        shown = sources[: data.draw(st.integers(end, len(sources)))]
        for turns in sorted(data.draw(st.sets(st.integers(1, layers)))):
            whole |= {(layer, block) for layer in order[:turns] for block in sources[:end]}
            plan.ahead(shown, end, turns)
            some()
            assert not plan.finished or not targets
        whole |= {(layer, block) for layer in range(layers) for block in sources[:end]}
        plan.computed(shown, end, end == len(sources))
        assert not plan.in_step
        some()
    while not plan.finished:
        written += taken(plan, landing, data.draw(st.integers(1, 8)), data.draw(st.integers(1, 3)))
    pairs = list(zip(sources[skip:], targets, strict=True))
    assert sorted(written) == sorted((layer, *pair) for layer in range(layers) for pair in pairs)
    assert landing.whole
    assert not plan.short
    assert plan.ready == plan.left == 0


def test_a_step_that_is_lost_has_what_was_taken_and_the_rest_from_elsewhere() -> None:
    plan = TransferPlan(2)
    plan.reserved(0, [1, 2])
    plan.ahead([7, 8], 2, 1)
    assert plan.ready == 2
    assert plan.take(1, 9) == [Write(0, 7, 1, 1)]
    plan.computed([7, 20], 1, False)
    assert plan.ready == 0, "the layer that is being taken has no more yet"
    plan.ahead([7, 20], 2, 1)
    assert plan.take(9, 9) == [Write(0, 20, 2, 1), Write(1, 7, 1, 1)]
    plan.computed([7, 20], 2, True)
    assert plan.take(9, 9) == [Write(1, 20, 2, 1)]
    assert plan.finished


def test_a_step_says_where_the_blocks_lie_that_it_computes() -> None:
    """What was said of blocks that were not whole by then does not count."""
    plan = TransferPlan(2)
    plan.reserved(0, [1, 2])
    plan.computed([7, 8], 1, False)
    plan.ahead([7, 20], 2, 1)
    assert plan.take(9, 9) == [Write(0, 7, 1, 1), Write(1, 7, 1, 1), Write(0, 20, 2, 1)]


def test_blocks_that_moved_and_are_fewer_come_back_with_the_next_step() -> None:
    plan = TransferPlan(2)
    plan.reserved(0, [1, 2, 3])
    plan.ahead([7, 8, 9], 3, 1)
    assert plan.take(1, 9) == [Write(0, 7, 1, 1)]
    plan.computed([20], 1, False)
    plan.ahead([20, 30, 31], 3, 1)
    assert plan.ready == 3
    assert plan.take(9, 9) == [Write(0, 30, 2, 2), Write(1, 20, 1, 1)]
    plan.computed([20, 30, 31], 3, True)
    assert plan.take(9, 9) == [Write(1, 30, 2, 2)]
    assert plan.finished


@given(transfers())
def test_as_few_writes_as_there_are_runs(transfer: tuple[list[int], list[int], int, int]) -> None:
    sources, targets, skip, layers = transfer
    plan = TransferPlan(layers)
    plan.reserved(skip, targets)
    plan.computed(sources, len(sources), True)
    assert plan.ready == plan.left == layers * len(targets)
    assert len(plan.take(ALL, ALL)) == layers * len(runs(sources[skip:], targets))


@settings(max_examples=200)
@given(st.integers(1, 3), st.data())
def test_a_preempted_request_comes_from_where_it_is_now_and_only_what_is_whole_there(
    layers: int, data: st.DataObject
) -> None:
    """Each time it comes back its blocks lie elsewhere and are computed again, from the first one on."""
    count = data.draw(st.integers(1, 8))
    targets = data.draw(st.permutations(range(100, 100 + count)))
    plan, landing = TransferPlan(layers), LandingPlan(layers, targets)
    plan.reserved(0, targets)
    lives = data.draw(st.integers(1, 4))
    for life in range(lives):
        sources = [life * 1000 + at for at in data.draw(st.permutations(range(count)))]
        whole = 0
        while whole < count:
            whole = data.draw(st.integers(whole + 1 if life == lives - 1 else whole, count))
            shown = data.draw(st.integers(whole, count))
            plan.computed(sources[:shown], whole, whole == count)
            for _, source, target in taken(plan, landing, data.draw(st.integers(0, 6)), ALL):
                at = list(targets).index(target)
                assert source == sources[at]
                assert at < whole
            if life < lives - 1 and data.draw(st.booleans()):
                break
    taken(plan, landing, ALL, ALL)
    assert plan.finished
    assert landing.whole


def test_a_sender_that_computed_too_little_is_noticed() -> None:
    plan = TransferPlan(1)
    plan.reserved(0, [1, 2, 3])
    plan.computed([7, 8], 2, final=True)
    assert plan.short
    assert not plan.finished
    assert plan.take(10, 10) == [Write(0, 7, 1, 2)]
    assert plan.finished


def test_nothing_to_send_is_finished_at_once() -> None:
    plan = TransferPlan(2)
    plan.computed([7, 8], 2, final=True)
    assert not plan.finished
    plan.reserved(2, [])
    assert plan.known
    assert (plan.finished, plan.short, plan.blocks) == (True, False, 0)


def test_a_preempted_request_is_not_final_any_more() -> None:
    plan = TransferPlan(1)
    plan.reserved(0, [1, 2])
    plan.computed([7, 8], 2, final=True)
    assert plan.take(1, 1) == [Write(0, 7, 1, 1)]
    plan.computed([20, 21], 1, final=False)
    assert plan.ready == 0
    assert not plan.finished
    plan.computed([20, 21], 2, final=True)
    assert plan.take(9, 9) == [Write(0, 21, 2, 1)]


def test_misuse_is_refused() -> None:
    plan = TransferPlan(1)
    plan.reserved(0, [1])
    with pytest.raises(ValueError, match="twice"):
        plan.reserved(0, [1])
    with pytest.raises(ValueError, match="more blocks"):
        plan.computed([1], 2, final=True)
    with pytest.raises(ValueError, match="more blocks"):
        plan.ahead([1], 2, 1)
