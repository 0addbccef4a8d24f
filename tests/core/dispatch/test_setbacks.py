"""Failed starts and refusals: how long nobody tries, what ends the trying, and what begins it anew."""

from __future__ import annotations

import pytest

from kserve_ext.core.dispatch.setbacks import LEAST_S, LONG_S, MOST_REFUSED_S, NEVER_S, Setbacks


def given_up(setbacks: Setbacks) -> bool:
    return setbacks.permanent


def test_refusals_are_tried_again_after_a_time_that_doubles_to_a_bound() -> None:
    setbacks, now, waits = Setbacks(), 0.0, []
    for _ in range(7):
        setbacks.refused("full", now)
        waits.append(setbacks.retry_at - now)
        now = setbacks.retry_at
    assert waits[:4] == pytest.approx([LEAST_S * 2**k for k in range(4)])
    assert waits[-1] == pytest.approx(MOST_REFUSED_S)
    assert not given_up(setbacks)


def test_too_large_for_every_node_ends_the_trying_until_demand_comes_later_or_a_node_comes() -> None:
    setbacks = Setbacks()
    setbacks.refused("too large", 0.0, never=True)
    assert given_up(setbacks)
    setbacks.demanded(NEVER_S - 0.1)
    assert given_up(setbacks)
    setbacks.demanded(NEVER_S)
    assert not given_up(setbacks)
    setbacks.refused("too large", NEVER_S, never=True)
    setbacks.nodes_came(NEVER_S + 1)
    assert not given_up(setbacks)
    assert setbacks.retry_at == NEVER_S + 1


def test_a_node_that_comes_does_not_heal_a_broken_model() -> None:
    setbacks = Setbacks()
    setbacks.start_failed("config.json is empty", True, 0.0)
    setbacks.nodes_came(1.0)
    assert given_up(setbacks)
    setbacks.demanded(LONG_S)
    assert not given_up(setbacks)
    assert setbacks.reason == "config.json is empty"
