"""Who may be alive out of the view: as seen, as told, until an end is seen or time has passed."""

from __future__ import annotations

from kserve_ext.core.dispatch.facts import LEASE_TTL_S, SEEN_TTL_S
from kserve_ext.core.dispatch.ghosts import Ghosts
from kserve_ext.core.facts import UNKNOWN, Left, Member
from kserve_ext.core.ids import FunctionID

ME, ONE, TWO = FunctionID("dispatch-0"), FunctionID("dispatch-1"), FunctionID("dispatch-2")
NOBODY_KNOWS = Left(UNKNOWN, 0, "", 0.0)


def member(name: FunctionID, host: str = "here", incarnation: int = 1, draining: bool = False) -> Member:
    return Member(name, "dispatch", f"{host}:{name[-1]}", incarnation, draining=draining)


def left(name: FunctionID, age_s: float, host: str = "here", incarnation: int = 1) -> Left:
    return Left(name, incarnation, f"{host}:{name[-1]}", age_s)


def test_who_left_before_this_process_came_is_in_its_first_view() -> None:
    ghosts = Ghosts("here:0")
    ghosts.view([member(ME)], [left(ONE, 5.0), left(TWO, 1.0, "there")], 10.0)
    assert set(ghosts.left) == {ONE, TWO}
    assert ghosts.seen == {ME, ONE}
    assert ghosts.tick(9.0 + LEASE_TTL_S) == [], "nobody waits for the end of one that isn't seen"
    assert set(ghosts.left) == {ONE}
    assert ghosts.tick(4.9 + SEEN_TTL_S) == []
    assert ghosts.tick(5.0 + SEEN_TTL_S) == [ONE], "it was told when it left"
    assert not ghosts.left


def test_one_of_another_machine_that_left_long_ago_is_none() -> None:
    ghosts = Ghosts("here:0")
    ghosts.view([member(ME)], [left(TWO, LEASE_TTL_S, "there")], 10.0)
    assert not ghosts.left


def test_what_has_ended_stays_so_although_views_still_name_it() -> None:
    ghosts = Ghosts("here:0")
    ghosts.view([member(ME)], [left(ONE, 1.0)], 10.0)
    assert ghosts.ended(ONE, ghosts.left[ONE])
    ghosts.view([member(ME), member(TWO)], [left(ONE, 1.0)], 10.5)
    assert not ghosts.left
    ghosts.view([member(ME), member(ONE, incarnation=2)], [], 11.0)
    ghosts.view([member(ME)], [left(ONE, 0.0, incarnation=2)], 12.0)
    assert ghosts.left[ONE].incarnation == 2


def test_one_that_came_and_went_between_two_views_is_told() -> None:
    ghosts = Ghosts("here:0")
    ghosts.view([member(ME)], [], 10.0)
    ghosts.view([member(ME)], [left(ONE, 0.5)], 12.0)
    assert ghosts.left[ONE].since == 11.5


def test_one_that_drains_has_work_as_well() -> None:
    ghosts = Ghosts("here:0")
    ghosts.view([member(ME), member(ONE, draining=True)], [], 10.0)
    assert ghosts.seen == {ME, ONE}
    assert set(ghosts.left) == {ONE}


def test_the_unknown_are_nothing_to_a_process_that_was_there() -> None:
    new, old = Ghosts("here:0"), Ghosts("here:0")
    old.view([member(ME)], [], 0.0)
    for ghosts in (new, old):
        ghosts.view([member(ME)], [NOBODY_KNOWS], 10.0)
    assert (new.seen, old.seen) == ({ME, UNKNOWN}, {ME})
    new.view([member(ME), member(ONE)], [NOBODY_KNOWS], 11.0)
    assert UNKNOWN in new.seen


def test_an_answer_about_a_former_process_says_nothing_of_the_next() -> None:
    ghosts = Ghosts("here:0")
    ghosts.view([member(ME), member(ONE)], [], 10.0)
    ghosts.view([member(ME)], [], 11.0)
    before = ghosts.left[ONE]
    ghosts.view([member(ME), member(ONE, incarnation=2)], [], 12.0)
    ghosts.view([member(ME)], [], 13.0)
    assert not ghosts.ended(ONE, before)
    assert ONE in ghosts.seen


def test_the_end_of_one_of_this_machine_is_seen_while_it_is_in_the_view_as_well() -> None:
    ghosts = Ghosts("here:0")
    ghosts.view([member(ME), member(ONE), member(TWO, "there")], [], 10.0)
    assert ghosts.seen == {ME, ONE}
