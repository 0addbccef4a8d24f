"""Room on a GPU beside sleepers: what is measured of each, who goes for whom, and that nobody goes in vain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.standby.room import (
    CONTEXT_MIB,
    DEFAULT_SHARE,
    Memory,
    Room,
    Verdict,
    out_of_memory,
    share_of,
)

TOTAL = 80_000


def asleep(*kept: tuple[str, int], outside: int = 0, awake: int = 20_000) -> Room:
    """These have loaded and fallen asleep one after the other on a GPU of which others have `outside`."""
    room, used = Room(), outside
    room.measured(Memory(TOTAL, TOTAL - used))
    for name, mib in kept:
        room.measured(Memory(TOTAL, TOTAL - used))
        room.starts()
        room.measured(Memory(TOTAL, TOTAL - used - awake))
        room.falls()
        used += mib
        room.measured(Memory(TOTAL, TOTAL - used))
        room.slept(name)
    return room


def test_what_each_keeps_and_has_given_back_is_told_apart_from_what_others_have() -> None:
    room = asleep(("a", 800), ("b", 900), outside=5_000)
    assert room.kept == {"a": 800, "b": 900}
    assert room.said("b") == "gave 19100 MiB of the GPU back and keeps 900; 73300 of 80000 are free"
    room.measured(Memory(TOTAL, 19_000))
    verdict = room.to_wake("b", ())
    assert verdict.why.startswith("the GPU has no room: b wakes with 19100 MiB free, 19000 of 80000 are: ")
    assert room.to_wake("b", ("a",)) == Verdict(victim="a")
    room.measured(Memory(TOTAL, 19_100))
    assert room.to_wake("b", ()) == Verdict()


def test_what_others_take_while_one_is_awake_is_not_what_it_keeps() -> None:
    """Seen on a GPU: its sleeper was ended for 79 GB that another process had."""
    room = asleep(("a", 800), ("b", 900))
    room.gone("b")
    room.measured(Memory(TOTAL, 100))
    room.falls()
    room.measured(Memory(TOTAL, 1_100))
    room.slept("a")
    assert room.kept == {"a": 800}
    room.measured(Memory(TOTAL, 999))
    assert room.to_wake("a", ()).why, "what it gave back last counts"
    room.gone("a")
    room.starts()
    room.measured(Memory(TOTAL, 299))
    room.slept("a")
    assert room.kept == {"a": 700}, "another process of it is measured anew"


def test_a_start_needs_its_share_of_all_and_a_context() -> None:
    room = asleep(("a", 800), ("b", 900))
    share = (TOTAL - 1_700 - CONTEXT_MIB) / TOTAL
    assert room.to_start("c", share, ()) == Verdict()
    assert room.to_start("c", share + 0.001, ("b", "a")) == Verdict(victim="b")
    assert room.to_start("c", 0.995, ("a", "b")).why == (
        "the GPU has no room: c starts with 80240 MiB free, 78300 of 80000 are and sleepers that may go for it keep "
        "1700: lower its --gpu-memory-utilization (0.995), or free the GPU of others"
    )


def test_what_is_not_known_as_one_falls_asleep_is_not_taken_for_what_it_gave_back() -> None:
    room = asleep(("a", 800))
    for memory in (None, Memory(TOTAL, 60_000)):
        room.measured(memory)
        room.falls()
        room.measured(Memory(TOTAL, 79_000))
        room.slept("a")
        room.measured(Memory(TOTAL, 19_200))
        assert room.to_wake("a", ()) == Verdict()
        assert "gave 19" in room.said("a")


def test_without_a_measurement_everything_fits() -> None:
    room = Room()
    room.starts()
    room.falls()
    room.slept("a")
    assert room.kept == {}
    assert room.to_start("b", 1.0, ("a",)) == Verdict()
    assert room.to_wake("a", ()) == Verdict()
    room.measured(Memory(TOTAL, 0))
    assert room.to_start("b", 0.0, ()) == Verdict(), "what it needs isn't known"
    assert room.to_start("b", 0.5, ("a",)).why, "what a keeps isn't known: nobody goes for nothing"


@given(
    kept=st.lists(st.integers(0, 2_000), max_size=6),
    outside=st.integers(0, 30_000),
    share=st.floats(0.5, 1.0),
)
def test_those_go_who_must_in_order_and_nobody_in_vain(kept: list[int], outside: int, share: float) -> None:
    room = asleep(*((f"e{n}", mib) for n, mib in enumerate(kept)), outside=outside)
    order = [f"e{n}" for n in reversed(range(len(kept)))]
    assert room.memory is not None
    free, need, left = room.memory.free_mib, TOTAL * share + CONTEXT_MIB, dict(room.kept)
    went: list[str] = []
    while (verdict := room.to_start("new", share, [n for n in order if n not in went])).victim:
        victim = verdict.victim
        assert free < need, "it went for nothing"
        assert all(not left[name] for name in order[: order.index(victim)] if name not in went), "out of turn"
        free += left[victim]
        went.append(victim)
        room.gone(victim)
        room.measured(Memory(TOTAL, free))
    if verdict.why:
        assert went == [], "whoever can't come has ended nobody"
        assert free + sum(left.values()) < need
    else:
        assert free >= need
        assert len(went) < 2 or free - left[went[-1]] < need, "one too many"


@pytest.mark.parametrize(
    ("words", "share"),
    [
        ("", DEFAULT_SHARE),
        ("--gpu-memory-utilization 0.3 --x", 0.3),
        ("--gpu_memory_utilization=0.4", 0.4),
        ("--gpu-memory-utilization=0.4 --gpu-memory-utilization 0.5", 0.5),
        ("--gpu-memory-utilization much", 0.0),
        ("--gpu-memory-utilization 7", 0.0),
    ],
)
def test_the_share_that_a_command_line_asks_for(words: str, share: float) -> None:
    assert share_of(words.split()) == share


@pytest.mark.parametrize(
    ("said", "short"),
    [
        ("CUDA Error: out of memory at cumem_allocator.cpp:62", True),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("cudaErrorMemoryAllocation", True),
        ("no wake within 60 s", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_what_says_that_memory_was_short(said: str, short: bool) -> None:
    assert out_of_memory(said) is short
