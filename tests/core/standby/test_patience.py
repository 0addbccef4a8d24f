"""An agent that answers others is busy; one that says nothing is silent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.standby.patience import MOST_S, SILENT_S, Patience


def test_without_a_word_an_order_is_waited_for_no_longer_than_that() -> None:
    patience = Patience()
    patience.heard("n", 9.9)  # before the order: says nothing of it
    assert patience.left_s("n", 10.0, 10.0) == SILENT_S
    assert patience.left_s("n", 10.0, 10.0 + SILENT_S) == 0
    assert patience.silent("n", 10.0 + SILENT_S)


def test_one_that_answers_others_has_more_time_but_not_for_ever() -> None:
    patience, now = Patience(), 10.0
    while now < 10.0 + MOST_S:
        patience.heard("n", now)
        assert patience.left_s("n", 10.0, now) > 0
        now += SILENT_S / 2
    patience.heard("n", now)
    assert patience.left_s("n", 10.0, now) == 0
    assert not patience.silent("n", now), "others may be ordered of it"
    assert patience.left_s("m", 10.0, 10.0 + SILENT_S) == 0, "another node's word is none of this one's"


def test_what_went_away_is_not_remembered() -> None:
    patience = Patience()
    patience.heard("n", 10.0)
    assert not patience.silent("n", 10.0)
    patience.forget("n")
    assert patience.silent("n", 10.0)


@given(st.lists(st.floats(0, 20), max_size=8).map(sorted), st.floats(0, 20))
def test_whoever_looks_when_told_to_gives_up_a_silence_after_the_last_word(
    words: list[float], ordered: float
) -> None:
    patience, now = Patience(), ordered
    coming = [word for word in words if word > ordered]
    while (left := patience.left_s("n", ordered, now)) > 1e-9:
        now += left
        while coming and coming[0] <= now:
            patience.heard("n", coming.pop(0))
    assert ordered + SILENT_S - 1e-6 <= now <= ordered + MOST_S + 1e-6
