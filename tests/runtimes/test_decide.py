"""Where a prompt is computed: the words for each reason, and that no fact ever counts the wrong way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.vllm_pd.decide import LEAST, SETUP_TOKENS, Channel, Decision, Facts, Setting, decide


@pytest.mark.parametrize(
    ("setting", "facts", "obstacle", "expected"),
    [
        ("auto", Facts(99), "", Decision(False, "below-threshold")),
        ("auto", Facts(100), "", None),
        ("auto", Facts(100, 0), "", Decision(True, "uncached=100")),
        ("auto", Facts(300, 201), "", Decision(False, "cached")),
        ("auto", Facts(300, 200), "", Decision(True, "uncached=100")),
        ("auto", Facts(300, 0, 0, 250), "", Decision(False, "busy-there=250")),
        ("auto", Facts(300, 0, 250, 250), "", Decision(True, "uncached=300")),
        ("auto", Facts(50, 0, 500, 0), "", Decision(True, "busy-here=500")),
        ("auto", Facts(LEAST - 1, 0, 500, 0), "", Decision(False, "below-threshold")),
        ("auto", Facts(50, 0, 500), "", Decision(False, "below-threshold")),
        ("auto", Facts(SETUP_TOKENS, 0, channel="none"), "", Decision(False, "no-channel")),
        (
            "auto",
            Facts(100 + SETUP_TOKENS, 0, channel="none"),
            "",
            Decision(True, f"uncached={100 + SETUP_TOKENS}"),
        ),
        ("auto", Facts(10_000, 0, channel="resting"), "", Decision(False, "backing-off")),
        ("always", Facts(1), "", Decision(False, "below-threshold")),
        ("always", Facts(2, 0, 0, 10**6, "none"), "", Decision(True, "uncached=2")),
        ("always", Facts(5, 4), "", Decision(False, "cached")),
        ("never", Facts(10_000, 0), "", Decision(False, "disabled")),
        ("always", Facts(10_000, 0), "adapter", Decision(False, "adapter")),
    ],
)
def test_decide(setting: Setting, facts: Facts, obstacle: str, expected: Decision | None) -> None:
    assert decide(setting, 100, facts, obstacle) == expected


tokens = st.integers(0, 20_000)
channels: st.SearchStrategy[Channel] = st.sampled_from(("standing", "none", "resting"))
settings: st.SearchStrategy[Setting] = st.sampled_from(("auto", "always", "never"))


@st.composite
def facts(draw: st.DrawFn) -> Facts:
    prompt = draw(st.integers(1, 20_000))
    cached = draw(st.integers(0, prompt))
    return Facts(prompt, cached, draw(tokens), draw(st.none() | tokens), draw(channels))


def remote(setting: Setting, threshold: int, facts: Facts, given_: bool) -> bool:
    decision = decide(setting, threshold, facts, given=given_)
    assert decision is not None, "everything is known"
    return decision.remote


@given(settings, tokens, facts(), tokens, st.booleans())
def test_no_fact_counts_the_wrong_way(
    setting: Setting, threshold: int, facts: Facts, more: int, given_: bool
) -> None:
    """More to compute, more waiting here, less waiting there, a better channel: never back from elsewhere to here."""
    if not remote(setting, threshold, facts, given_):
        return
    better = [
        facts._replace(prompt=facts.prompt + more),
        facts._replace(cached=max(0, (facts.cached or 0) - more)),
        facts._replace(channel="standing"),
    ]
    if facts.there is not None:
        better += [facts._replace(here=facts.here + more), facts._replace(there=max(0, facts.there - more))]
    assert all(remote(setting, threshold, one, given_) for one in better)
    assert remote(setting, max(0, threshold - more), facts, given_)


@given(settings, tokens, facts(), st.booleans())
def test_what_can_not_be_used_or_has_nothing_to_send_is_not_sent(
    setting: Setting, threshold: int, facts: Facts, given_: bool
) -> None:
    if remote(setting, threshold, facts, given_):
        assert facts.channel != "resting"
        assert facts.prompt - (facts.cached or 0) >= 2
        assert setting != "never"
        assert not given_ or setting == "always" or facts.prompt - (facts.cached or 0) >= threshold


@given(settings, tokens, facts(), st.booleans())
def test_an_answer_before_the_cache_is_looked_up_is_the_answer(
    setting: Setting, threshold: int, facts: Facts, given_: bool
) -> None:
    early = decide(setting, threshold, facts._replace(cached=None), given=given_)
    if early is not None:
        assert early.remote == remote(setting, threshold, facts, given_)
