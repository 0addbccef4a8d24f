"""A home whose process is behind: it starts and stops nothing but a first instance, and begins slowly afterwards."""

from __future__ import annotations

from itertools import pairwise

from kserve_ext.core.dispatch.lag import BEHIND_S, FIRST_RATE, MOST_RATE, Lag


def caught_up(at: float) -> Lag:
    lag = Lag()
    lag.ticked(at - 2 * BEHIND_S, at)
    assert lag.behind
    lag.ticked(at, at)
    return lag


def test_starts_are_not_counted_where_ticks_come_in_time() -> None:
    lag = Lag()
    for tenth in range(100):
        lag.ticked(tenth / 10, tenth / 10 + 0.9 * BEHIND_S)
        assert lag.allows(10_000, tenth / 10) == 10_000


def test_nothing_is_allowed_while_it_is_behind() -> None:
    lag = Lag()
    lag.ticked(1.0, 1.0 + 2 * BEHIND_S)
    assert lag.allows(5, 10.0) == 0


def test_what_has_caught_up_starts_slowly_and_twice_as_fast_each_second() -> None:
    lag = caught_up(10.0)
    begun: list[int] = []
    now = 10.0
    while lag.rate:
        second = 0
        for _ in range(10):
            now += 0.1
            lag.ticked(now, now)
            if lag.rate:
                count = lag.allows(10_000, now)
                lag.began(count)
                second += count
        begun.append(second)
    assert FIRST_RATE / 2 <= begun[0] <= 2 * FIRST_RATE
    assert all(b < 3 * a for a, b in pairwise(begun))
    assert max(begun) <= 2 * MOST_RATE
    assert lag.allows(10_000, now) == 10_000
    assert now < 20.0, "it isn't slow for long"


def test_more_than_it_allowed_is_owed() -> None:
    lag = caught_up(10.0)
    lag.began(int(FIRST_RATE))  # first instances of revisions at zero
    lag.ticked(10.5, 10.5)  # they are answered
    assert lag.allows(5, 10.5) == 0
    assert lag.allows(5, 12.0) > 0


def test_no_more_is_asked_for_than_those_who_place_keep_up_with() -> None:
    lag = caught_up(10.0)
    now = 10.0
    for _ in range(100):
        now += 0.1
        lag.ticked(now, now, asking=int(FIRST_RATE) - 1)
        assert lag.allows(100, now) <= 1
    assert lag.rate == FIRST_RATE, "and it grows no faster"
    lag.ticked(now + 2.0, now + 2.0, asking=0)
    assert lag.rate > FIRST_RATE


def test_one_that_is_behind_again_begins_anew() -> None:
    lag = caught_up(10.0)
    for now in (11.1, 12.2, 13.3):
        lag.ticked(now, now)
    assert lag.rate > FIRST_RATE
    lag.ticked(13.4, 14.0)
    assert lag.rate == FIRST_RATE
    assert lag.allows(1, 15.0) == 0
