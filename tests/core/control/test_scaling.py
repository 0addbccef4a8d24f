"""How many functions of a kind: one answer a wave, within bounds, never too few, and still for a constant load."""

from __future__ import annotations

from math import ceil

from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.control.facts import Bounds, Reading
from kserve_ext.core.control.meter import APPLY_AFTER, BUSY_MOST, CATCH_UP_S, LATE_S, Meter, past
from kserve_ext.core.control.scaling import LOW, RELEASE, Pace, Scaling
from kserve_ext.core.ids import FunctionID

T = 100.0
PACE = Pace(stable_s=10.0, shrink_s=2.0, cool_s=1.0, wave_s=5.0)
PERIOD_S = 0.5


def names(count: int) -> list[FunctionID]:
    return [FunctionID(f"schedule-{n}") for n in range(count)]


class World:
    """Functions that report and apply every period; those that are wanted are there `start_s` later."""

    def __init__(self, bounds: Bounds, start_s: float = 0.5) -> None:
        self.now = 0.0
        self.scaling = Scaling("schedule", bounds, T, 0.0, PACE)
        self.start_s = start_s
        self.running = bounds.min
        self.history = [bounds.min]
        self._ready_at: float | None = None

    def period(self, shares: list[float], *, lost: bool = False) -> None:
        """`shares`: srps of each function that runs."""
        self.now += PERIOD_S
        scaling = self.scaling
        functions = names(self.running)
        scaling.keep_only(set(functions))
        for name, srps in zip(functions, shares, strict=True):
            scaling.report(name, Reading(srps))
        before = scaling.wanted
        answers = set()
        for name, srps in zip(functions, shares, strict=True):
            if past(Reading(srps), T) and not lost:
                answers.add(scaling.apply(name, Reading(srps), self.now))
        if scaling.wanted > before:
            assert len(answers) == 1, answers
            assert answers.pop().granted == scaling.wanted - before
            self._ready_at = self.now + self.start_s
        if self._ready_at is not None and self.now >= self._ready_at:
            self.running, self._ready_at = scaling.wanted, None
            scaling.settled(self.now)
        if scaling.tick(self.now, self.running):
            self.running = scaling.wanted
        self.history.append(scaling.wanted)
        assert scaling.bounds.min <= scaling.wanted <= scaling.bounds.max

    def divide(self, total: float, worst: float) -> list[float]:
        """The first gets `worst` of the rest's even share more."""
        even = total / self.running
        if self.running == 1:
            return [total]
        extra = min(even * worst, even * (self.running - 1))
        return [even + extra, *[(total - even - extra) / (self.running - 1)] * (self.running - 1)]


@given(
    total=st.floats(0, 1500),
    worst=st.floats(0, 0.25),
    bounds=st.tuples(st.integers(1, 3), st.integers(3, 12)).map(lambda b: Bounds(*b)),
    start_s=st.sampled_from([0.0, 0.5, 3.0]),
)
@settings(deadline=None)
def test_a_constant_load_makes_the_number_grow_to_what_it_needs_and_stay(
    total: float, worst: float, bounds: Bounds, start_s: float
) -> None:
    world = World(bounds, start_s)
    for _ in range(200):
        world.period(world.divide(total, worst))
    assert world.history == sorted(world.history), "it went down under a constant load"
    shares = world.divide(total, worst)
    assert world.running == bounds.max or max(shares) <= T
    assert world.history[100] == world.history[-1]


@given(
    loads=st.lists(st.tuples(st.floats(0, 1000), st.integers(1, 60), st.booleans()), max_size=8),
    start_s=st.sampled_from([0.0, 1.0, 8.0]),
)
@settings(deadline=None)
def test_never_fewer_than_the_load_of_the_stable_window_needs(
    loads: list[tuple[float, int, bool]], start_s: float
) -> None:
    world = World(Bounds(1, 8), start_s)
    recent: list[float] = []
    for total, periods, lost in loads:
        for _ in range(periods):
            before = world.scaling.wanted
            world.period(world.divide(total, 0.1), lost=lost)
            recent = [*recent, total][-int(PACE.stable_s / PERIOD_S) :]
            if world.scaling.wanted < before:
                assert world.scaling.wanted == before - 1
                assert ceil(max(recent) / T) <= world.scaling.wanted
                assert max(recent) / T <= LOW * world.scaling.wanted + 1e-9


def test_it_goes_back_one_at_a_time_after_a_stable_window() -> None:
    world = World(Bounds(1, 8))
    for _ in range(6):
        world.period(world.divide(500.0, 0.0))
    assert world.running == 7
    grown_at = world.now
    while world.running > 1:
        before = world.running
        world.period(world.divide(10.0, 0.0))
        assert before - world.running in (0, 1)
        if before == 7 and world.running == 6:
            assert world.now - grown_at >= PACE.stable_s - PERIOD_S
        assert world.now < 100.0


def test_what_was_too_few_for_a_load_is_not_tried_again_for_that_load() -> None:
    """All the load is one function's: the sum would fit into fewer."""
    world = World(Bounds(2, 4))
    world.period([120.0, 0.0])
    world.period([120.0, 0.0])
    assert world.running == 3
    for _ in range(200):
        world.period([90.0, 30.0, 0.0])
    assert world.running == 3
    for _ in range(100):
        world.period(world.divide(120.0 * RELEASE * 0.9, 0.0))
    assert world.running == 2


def test_whoever_applies_in_a_wave_gets_the_answer_of_the_first() -> None:
    scaling = Scaling("schedule", Bounds(3, 9), T, 0.0, PACE)
    for name in names(3):
        scaling.report(name, Reading(150.0))
    scaling.tick(0.0, 3)
    answers = {scaling.apply(name, Reading(150.0), 1.0 + n) for n, name in enumerate(names(3))}
    assert len(answers) == 1
    assert answers.pop().granted == 3  # 450/s at 80 of 100 each
    assert scaling.settled(4.0) == 3.0
    assert scaling.settled(4.1) is None
    assert scaling.apply(names(1)[0], Reading(150.0), 4.5).granted == 3  # its load is from before
    assert scaling.wanted == 6
    scaling.tick(6.0, 6)
    scaling.apply(names(1)[0], Reading(500.0), 6.0)
    assert scaling.wanted == 9


def test_functions_that_cannot_be_started_are_not_asked_for_again_and_again() -> None:
    scaling = Scaling("schedule", Bounds(1, 9), T, 0.0, PACE)
    for second in range(100):
        scaling.tick(float(second), 1)
        scaling.apply(names(1)[0], Reading(120.0), float(second))
    assert scaling.wanted == 2


def test_at_the_most_and_below_the_threshold_nothing_is_granted_and_the_answer_says_why() -> None:
    scaling = Scaling("schedule", Bounds(1, 1), T, 0.0, PACE)
    answer = scaling.apply(names(1)[0], Reading(120.0, 0.5), 1.0)
    assert answer.granted == 0
    assert "the most" in answer.reason
    assert "120/s, 50% of a core" in answer.reason
    scaling = Scaling("schedule", Bounds(1, 4), T, 0.0, PACE)
    assert "not past its threshold" in scaling.apply(names(1)[0], Reading(20.0), 1.0).reason


def test_an_earlier_controllers_number_is_taken_over_within_the_bounds() -> None:
    scaling = Scaling("schedule", Bounds(2, 4), T, 0.0, PACE)
    scaling.restore(9, 0.0)
    assert scaling.wanted == 4
    scaling.restore(1, 0.0)
    assert scaling.wanted == 2


def test_a_function_applies_after_two_periods_and_goes_on_until_it_is_heard() -> None:
    meter = Meter(0.0)
    applied = []
    for period in range(1, 6):
        reading = meter.read(requests=period * 60, cpu_s=0.01 * period, late_s=0.0, now=period * 0.5)
        applied.append(meter.applies(reading, T))
    assert reading.srps == 120.0
    assert applied == [False, *[True] * 4][: APPLY_AFTER - 1] + [True] * (5 - APPLY_AFTER + 1)
    assert not meter.applies(meter.read(300, 0.05, 0.0, 3.0), T)


def test_one_that_falls_behind_applies_at_once_unless_it_has_just_begun() -> None:
    def applies(periods: list[tuple[float, float]]) -> list[bool]:
        """`periods`: the share of its core, and how late it came."""
        meter, cpu_s, applied = Meter(0.0), 0.0, []
        for number, (busy, late_s) in enumerate(periods, 1):
            cpu_s += busy * PERIOD_S
            reading = meter.read(requests=0, cpu_s=cpu_s, late_s=late_s, now=number * PERIOD_S)
            applied.append(meter.applies(reading, T))
        return applied

    behind = (0.99, 2 * LATE_S)
    assert applies([(0.1, 0.0), behind, (0.1, 0.0)]) == [False, True, False]
    assert applies([behind, (0.1, 0.0)]) == [False, False]
    assert applies([(0.1, 0.0), (0.99, 0.0), (0.1, 0.0)]) == [False] * 3, "it keeps up"
    assert applies([(0.1, 0.0), (0.5, 2 * LATE_S), (0.1, 0.0)]) == [False] * 3, "others may make it late"


def test_a_wave_that_is_too_small_grows_when_who_applies_falls_behind() -> None:
    """A burst rises further before those that it brought are there."""
    scaling = Scaling("schedule", Bounds(1, 9), T, 0.0, PACE)
    first = names(1)[0]
    scaling.tick(0.0, 1)

    def applies(srps: float, now: float, *, late_s: float = LATE_S + 0.01) -> int:
        return scaling.apply(first, Reading(srps, 0.99, late_s), now).granted

    assert applies(120.0, 1.0) == 1
    assert applies(120.0, 1.5) == 1, "the answer of the wave: two bear that"
    assert applies(400.0, 2.0, late_s=0.0) == 1, "it keeps up: one period says little"
    assert scaling.wanted == 2
    assert applies(400.0, 2.5) == 5
    assert scaling.wanted == 7
    assert applies(400.0, 3.0) == 5
    assert scaling.wanted == 7
    applies(4000.0, 3.5)
    applies(4000.0, 4.0)
    assert scaling.wanted == 9


def test_who_gets_through_what_waited_makes_no_wave_larger() -> None:
    scaling = Scaling("dispatch", Bounds(1, 9), T, 0.0, PACE)
    first, second = names(2)
    scaling.tick(0.0, 1)
    scaling.apply(first, Reading(0.0, 1.0, 4 * LATE_S), 1.0)
    assert scaling.wanted == 3
    scaling.report(second, Reading(0.0, 0.9))
    scaling.apply(first, Reading(0.0, 1.0, 1.9 * LATE_S), 1.5)
    assert scaling.wanted == 3
    scaling.apply(first, Reading(0.0, 1.0, 2.1 * LATE_S), 2.0)
    assert scaling.wanted == 4


def test_what_waits_for_a_used_up_core_counts_for_growth_and_for_nothing_else() -> None:
    def wanted(reading: Reading) -> int:
        scaling.tick(0.0, 1)
        scaling.apply(names(1)[0], reading, 1.0)
        return scaling.wanted

    scaling = Scaling("dispatch", Bounds(1, 9), T, 0.0, PACE)
    assert wanted(Reading(0.0, 1.0)) == 2
    scaling = Scaling("dispatch", Bounds(1, 9), T, 0.0, PACE)
    assert wanted(Reading(0.0, 1.0, CATCH_UP_S)) == 3
    assert scaling.pressure == 1.0 / BUSY_MOST
    scaling = Scaling("dispatch", Bounds(1, 9), T, 0.0, PACE)
    assert wanted(Reading(0.0, 1.0, 60 * CATCH_UP_S)) == 3, (
        "twice as many at most: its queue isn't the others'"
    )
    scaling = Scaling("dispatch", Bounds(1, 9), T, 0.0, PACE)
    assert wanted(Reading(120.0, 0.5, CATCH_UP_S)) == 2, "others may make it late"


def test_a_number_that_never_ran_was_not_too_few() -> None:
    """A wave that becomes larger before its functions are there says nothing of as many as it was to bring."""
    pace = Pace(stable_s=10.0, shrink_s=1.0, cool_s=0.5, wave_s=5.0)
    scaling = Scaling("dispatch", Bounds(1, 9), T, 0.0, pace)
    first = names(1)[0]
    scaling.tick(0.0, 1)
    scaling.apply(first, Reading(0.0, 1.0, LATE_S + 0.1), 1.0)
    assert scaling.wanted == 2
    scaling.apply(first, Reading(0.0, 1.0, 4 * LATE_S), 1.5)
    assert scaling.wanted == 3
    scaling.settled(2.0)
    for k, name in enumerate(names(3)):
        scaling.report(name, Reading(0.0, 0.9 * BUSY_MOST if k == 0 else 0.0))
    for second in range(3, 60):
        scaling.tick(float(second), scaling.wanted)
    assert scaling.wanted == 2, "two bear 1.2 times what one does"


def test_what_is_past() -> None:
    assert past(Reading(T + 1), T)
    assert not past(Reading(T + 1), 0.0)
    assert past(Reading(0, BUSY_MOST + 0.01), T)
    assert past(Reading(0, 0.5, LATE_S * 2), T)
    assert not past(Reading(0, 0.1, LATE_S * 2), T), "late because of others"
