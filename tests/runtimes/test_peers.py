"""Which prefill peers are left alone, and how long a transfer may take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.vllm_pd.peers import (
    LEAST_REST_S,
    MOST_REST_S,
    Backoff,
    transfer_s,
)


def test_a_rest_doubles_with_each_failure_is_bounded_and_forgotten_on_success() -> None:
    backoff, now, rests = Backoff(), 100.0, []
    assert backoff.may_ask("p", now)
    for _ in range(8):
        backoff.failed("p", now)
        rest = 0.0
        while not backoff.may_ask("p", now + rest):
            rest += 0.5
        rests.append(rest)
        now += rest
    assert rests == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    backoff.succeeded("p")
    assert backoff.may_ask("p", now)
    backoff.failed("p", now)
    assert not backoff.may_ask("p", now + LEAST_REST_S / 2)
    assert backoff.may_ask("p", now + LEAST_REST_S)


def test_requests_that_fail_together_are_one_failure() -> None:
    backoff = Backoff()
    for late in (0.0, 0.1, 0.2):
        backoff.failed("p", late)
    assert backoff.may_ask("p", LEAST_REST_S)


def test_after_a_rest_one_request_tries_and_the_others_wait_for_what_comes_of_it() -> None:
    backoff = Backoff()
    backoff.failed("p", 0.0)
    assert [backoff.may_ask("p", 1.0) for _ in range(3)] == [True, False, False]
    assert backoff.may_ask("p", 2.0), "nothing was heard of the one that tried: another one does"
    backoff.succeeded("p")
    assert all(backoff.may_ask("p", 2.0) for _ in range(3))


def test_one_peers_rest_is_not_anothers_and_old_ones_are_forgotten() -> None:
    backoff = Backoff()
    backoff.failed("p", 0.0)
    assert backoff.may_ask("q", 0.0)
    assert backoff.anyone_rests(0.5)
    assert not backoff.anyone_rests(1.0)
    for number in range(100):
        backoff.failed(f"p{number}", number * 2 * MOST_REST_S)
    assert len(backoff._rests) == 1


@given(st.lists(st.tuples(st.sampled_from("afs"), st.floats(0.0, 40.0))))
def test_whatever_happens_a_peer_is_asked_again_in_time(steps: list[tuple[str, float]]) -> None:
    backoff, now = Backoff(), 0.0
    for what, later in steps:
        now += later
        if what == "a":
            backoff.may_ask("p", now)
        elif what == "f":
            backoff.failed("p", now)
        else:
            backoff.succeeded("p")
            assert backoff.may_ask("p", now)
    assert backoff.may_ask("p", now + MOST_REST_S)


@pytest.mark.parametrize(
    ("tokens", "most", "expected"), [(0, 20.0, 5.0), (300, 20.0, 8.0), (10_000, 20.0, 20.0), (300, 1.0, 1.0)]
)
def test_longer_prompts_may_take_longer(tokens: int, most: float, expected: float) -> None:
    assert transfer_s(tokens, most) == expected
