"""Token velocity: measured from work, whichever way jobs overlap; what says nothing is left out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.scaling.velocity import DecodeVelocity, PrefillVelocity


def test_nothing_is_known_at_first_and_after_what_can_not_be() -> None:
    velocity = PrefillVelocity()
    for tokens, started, ended in (
        (0, 1.0, 2.0),
        (5, 2.0, 2.0),
        (5, 3.0, 2.0),
        (5, 0.0, 1e6),
        (5, 1.0, 1.4),
    ):
        velocity.ran(tokens, started, ended)
    assert velocity.tokens_s == 0.0


@given(st.lists(st.floats(0.06, 5.0), min_size=10, max_size=30), st.integers(1, 8), st.floats(100, 50_000))
def test_equals_the_rate_however_many_jobs_share_it(spans: list[float], together: int, rate: float) -> None:
    velocity, at = PrefillVelocity(), 1e9
    for span in spans:
        for _ in range(together):
            velocity.ran(max(1, round(rate * span / together)), at, at + span)
        at += span + 10.0
    assert abs(velocity.tokens_s - rate) <= 0.2 * rate + together / 0.06


def test_new_work_outweighs_old() -> None:
    velocity = PrefillVelocity()
    for k in range(100):
        velocity.ran(1000, float(k), k + 1.0)
    for k in range(100, 220):
        velocity.ran(4000, float(k), k + 1.0)
    assert 3700 < velocity.tokens_s < 4100


def test_what_a_full_decode_instance_would_do() -> None:
    velocity = DecodeVelocity()
    velocity.did(100, 0.05, 1.0)
    assert velocity.tokens_s == 0.0, "almost idle"
    velocity.did(500, 0.5, 1.0)
    assert velocity.tokens_s == 1000.0
    for _ in range(200):
        velocity.did(1600, 0.8, 1.0)
    assert 1950 < velocity.tokens_s < 2010
