"""What is kept of checked tokens: never too much, never for too long, and good ones before bad ones."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.standby import proofs
from kserve_ext.core.standby.proofs import GOOD_S, LEAST_S, REFUSED_S, Proofs


def token(**claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"head.{body}.signature"


@given(st.floats(-1e6, 1e6), st.floats(0, 2 * GOOD_S))
def test_a_good_one_is_good_until_it_expires_but_no_longer_than_an_hour(
    lasts_s: float, after_s: float
) -> None:
    kept = Proofs()
    kept.good(b"a", lasts_s, 0.0)
    known = kept.of(b"a", after_s)
    assert (known is not None) == (after_s < min(GOOD_S, max(LEAST_S, lasts_s)))
    assert known is None or not known.refusal


def test_a_refused_one_is_refused_for_a_moment_with_the_same_reason() -> None:
    kept = Proofs()
    kept.refused(b"a", "expired", 0.0)
    found = kept.of(b"a", REFUSED_S / 2)
    assert found is not None
    assert found.refusal == "expired"
    assert kept.of(b"a", REFUSED_S) is None
    kept.good(b"a", 100.0, REFUSED_S)
    found = kept.of(b"a", REFUSED_S)
    assert found is not None
    assert not found.refusal


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=60))
def test_it_keeps_no_more_than_its_bound_and_bad_ones_push_out_no_good_one(
    marks: list[tuple[int, bool]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proofs, "KEEP", 5)
        kept = Proofs()
        for name in (b"x", b"y"):
            kept.good(name, 1000.0, 0.0)
        for number, good in marks:
            if good and number < 2:
                kept.good(b"%d" % number, 1000.0, 0.0)
            else:
                kept.refused(b"%d" % number, "no", 0.0)
            assert len(kept) <= 5
        for name in (b"x", b"y"):
            assert kept.of(name, 1.0) is not None


def test_questions_have_a_rate_and_whoever_leaves_gives_the_place_back() -> None:
    kept = Proofs()
    waits = [kept.wait_s(0.0) for _ in range(proofs.BURST + 2)]
    assert waits[: proofs.BURST] == [0.0] * proofs.BURST
    assert waits[-1] == pytest.approx(2 / proofs.RATE)
    kept.not_asked()
    assert kept.wait_s(0.0) == pytest.approx(2 / proofs.RATE)


def test_when_a_token_expires_and_what_says_nothing() -> None:
    assert proofs.expires(token(exp=1700000000, aud="x")) == 1700000000
    for odd in (
        "",
        "a.b",
        "a.!.c",
        token(aud="x"),
        token(exp="soon"),
        token(exp=None),
        "a." + "W" * 999 + ".c",
    ):
        assert proofs.expires(odd) == float("inf")


def test_a_digest_is_of_all_three() -> None:
    made = {
        proofs.digest(*three)
        for three in (("t", "p", "u"), ("t2", "p", "u"), ("t", "p2", "u"), ("t", "p", "2"))
    }
    assert len(made) == 4
