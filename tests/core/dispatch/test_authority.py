"""A home whose process stood still does nothing until it has heard that it still is the home."""

from __future__ import annotations

import pytest

from kserve_ext.core.dispatch.authority import ASK_S, STILL_S, Authority
from kserve_ext.core.dispatch.facts import Demand, SendGrant
from kserve_ext.core.dispatch.home import Home
from kserve_ext.core.facts import Instance
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from tests.support.world_nodes import revision

ME, OTHER, THIRD = (FunctionID(f"dispatch-{k}") for k in range(3))
NODE, ONE = NodeID("node-0"), InstanceID("one")


def after_a_gap() -> Authority:
    authority = Authority()
    authority.view(4)
    assert authority.turns(0.0)
    assert not authority.turns(10.0)
    return authority


def test_ticks_in_time_are_no_reason_to_doubt() -> None:
    authority = Authority()
    assert all(authority.turns(k * STILL_S) for k in range(100))


def test_only_an_answer_to_a_question_asked_after_the_gap_counts() -> None:
    authority = after_a_gap()
    authority.member(asked_at=9.9)
    assert not authority.turns(10.1)
    authority.member(asked_at=10.0)
    assert authority.turns(10.2)
    assert authority.term == 0


def test_after_a_view_that_it_has_missed_its_homes_take_over_anew() -> None:
    authority = after_a_gap()
    authority.view(6)
    authority.member(asked_at=10.5)
    assert (authority.turns(10.6), authority.term) == (True, 6)


def test_a_second_gap_asks_again() -> None:
    authority = after_a_gap()
    assert not authority.turns(20.0)
    authority.member(asked_at=10.5)
    assert not authority.turns(20.1)


def test_where_no_controller_answers_all_others_that_can_be_reached_must() -> None:
    authority = after_a_gap()
    assert authority.asks([OTHER, THIRD], 10.0) == []
    at = 10.0 + ASK_S
    assert authority.asks([OTHER, THIRD], at) == [OTHER, THIRD]
    authority.answered(OTHER, at, 4)
    assert not authority.sure
    authority.answered(THIRD, at, None)
    assert authority.sure


@pytest.mark.parametrize("answers", [(None, None), (4, 5), (5, 4)])
def test_nobody_reached_or_a_newer_view_leaves_the_doubt(answers: tuple[int | None, int | None]) -> None:
    authority = after_a_gap()
    at = 10.0 + ASK_S
    authority.asks([OTHER, THIRD], at)
    for who, epoch in zip((OTHER, THIRD), answers, strict=True):
        authority.answered(who, at, epoch)
    assert not authority.sure


def test_the_only_one_of_its_view_has_nobody_to_ask() -> None:
    authority = after_a_gap()
    assert authority.asks([], 10.0 + ASK_S) == []
    assert authority.sure


def confirmed(epoch: int) -> Authority:
    authority = Authority()
    authority.view(epoch)
    authority.member(asked_at=0.0)
    return authority


def test_nobody_is_asked_while_the_controller_answers_nor_before_it_ever_has() -> None:
    assert Authority().asks([OTHER], 100.0) == []
    authority = confirmed(4)
    assert authority.asks([OTHER], ASK_S - 0.1) == []
    authority.member(asked_at=1.0)
    assert authority.asks([OTHER], ASK_S) == []


def test_one_that_is_cut_off_from_the_controller_hears_from_others_that_there_is_a_newer_view() -> None:
    authority = confirmed(4)
    assert authority.asks([OTHER, THIRD], ASK_S) == [OTHER, THIRD]
    authority.answered(OTHER, ASK_S, None)
    assert authority.turns(ASK_S), "a controller that is down replaces nobody"
    authority.answered(THIRD, ASK_S, 5)
    assert not authority.turns(ASK_S)
    authority.view(6)
    assert (authority.turns(ASK_S), authority.term) == (True, 6)


def test_a_view_that_follows_the_one_known_here_is_no_reason_to_take_over_anew() -> None:
    authority = confirmed(4)
    authority.asks([OTHER], ASK_S)
    authority.answered(OTHER, ASK_S, 5)
    authority.view(5)
    assert (authority.sure, authority.term) == (True, 0)


def test_a_home_that_stood_still_grants_nothing_and_takes_over_anew_after_a_view_it_missed() -> None:
    of = revision(concurrency=1)
    authority = Authority()
    authority.view(1)
    home = Home(ME, 1, lambda key: ONE, authority)
    home.view([NODE], {ME: 1}, (), 0.0)
    home.add(of, True, (), 0.0)
    home.recalled(ME, [of.key], (), 0.0)
    home.node_says(of.key, NODE, (Instance(ONE, of.key, NODE, "ready", "h:1"),), 0.0, 0.0)
    grant, _ = home.demand(ME, Demand(of.key, 1, 1, 0, 1, 1, 0, 0.0, 0.5, term=1), 0.5)
    assert grant is not None
    assert [i for i, _, _ in grant.slots] == [ONE]

    later = Demand(of.key, 2, 1, 0, 1, 0, 0, 0.0, 0.5, term=1, granted=grant.seq)
    assert home.demand(ME, later, 10.0) == (None, [])
    assert home.tick(10.1) == []
    assert not [i for i in home.view([NODE], {ME: 1}, (), 10.2) if isinstance(i, SendGrant)]

    authority.view(3)
    authority.member(asked_at=10.3)
    home.tick(10.4)
    assert home.term == 3
    assert not home.revisions[of.key].open
    assert home.silent_shards == {ME: [of.key]}
