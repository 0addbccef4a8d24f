"""Which engine takes the next leg."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.two_leg.engines import LATE_CHECKS, LEAST_REST_S, MOST_REST_S, Engines


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=60))
def test_the_least_loaded_takes_the_next_leg(legs: list[tuple[int, bool]]) -> None:
    engines = Engines(["a", "b", "c"])
    running: list[tuple[str, int]] = []
    for weight, ends in legs:
        addr = engines.pick(0.0)
        loads = {name: sum(w for a, w in running if a == name) for name in engines.all}
        assert loads[addr] == min(loads.values())
        assert {name: engine.load for name, engine in engines.all.items()} == loads
        engines.begun(addr, weight)
        running.append((addr, weight))
        if ends:
            engines.ended(*running.pop(0))


def test_equals_take_turns() -> None:
    engines = Engines(["a", "b", "c"])
    taken = []
    for _ in range(6):
        taken.append(engines.pick(0.0))
        engines.begun(taken[-1])
        engines.ended(taken[-1])
    assert taken == ["a", "b", "c"] * 2


def test_one_that_failed_rests_ever_longer_and_is_the_last_resort() -> None:
    engines, now, rests = Engines(["a", "b"]), 100.0, []
    engines.begun("b")
    for _ in range(7):
        engines.failed("a", now)
        engines.failed("a", now)  # another leg of the same moment
        assert engines.pick(now) == "b"
        assert engines.pick(now, {"b"}) == ""
        assert engines.pick(now, {"b"}, unwell=True) == "a"
        rest = engines.all["a"].rests_until - now
        rests.append(rest)
        now += rest
        assert engines.pick(now) == "a"
    assert rests == [LEAST_REST_S, 2.0, 4.0, 8.0, 16.0, MOST_REST_S, MOST_REST_S]
    engines.failed("a", now)
    engines.answered("a")
    assert engines.pick(now) == "a"


def test_a_failed_check_keeps_legs_away_until_one_passes() -> None:
    engines = Engines(["a"])
    engines.failed("a", 0.0)
    assert engines.checked("a", False)
    assert not engines.checked("a", False)
    assert (engines.pick(100.0), engines.any_healthy) == ("", False)
    assert engines.checked("a", True)
    assert engines.pick(0.0) == "a", "what failed before is forgotten with it"


def test_checks_that_are_late_must_be_so_in_a_row() -> None:
    engines = Engines(["a"])
    for _ in range(3):
        for _ in range(LATE_CHECKS - 1):
            assert not engines.late("a")
            assert engines.pick(0.0) == "a"
        assert not engines.checked("a", True), "it has been well all the time"
    assert [engines.late("a") for _ in range(LATE_CHECKS + 1)] == [False] * (LATE_CHECKS - 1) + [True, False]
    assert engines.pick(100.0) == ""
    assert engines.checked("a", True)
    assert engines.pick(0.0) == "a"
    assert not engines.late("a")
