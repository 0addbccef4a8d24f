"""Every course ends in one answer or none, whatever fails when, and no KV is forgotten or pulled by two.

A model of prefill and decode engines draws what each step meets with. It knows what a router can't see: which decode
engine has begun to pull.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.two_leg.course import (
    Cancel,
    Course,
    Decode,
    GiveBack,
    Linger,
    Pass,
    Prefill,
    Refuse,
    Release,
    Step,
    Take,
)
from kserve_ext.core.two_leg.engines import Engines

PARAMS = {"do_remote_prefill": True}


class Model:
    def __init__(self, data: st.DataObject, decodes: int, required: bool, reason: str) -> None:
        self.engines = Engines([f"d{number}" for number in range(decodes)])
        self.course = Course(self.engines, reason, required=required)
        self.data = data
        self.leased = False
        self.kept = False  # KV at prefill, that nobody has been told of yet
        self.pulling: set[str] = set()
        self.outcome = ""
        self.decoded: list[Decode] = []

    def draw(self, *kinds: str) -> str:
        return self.data.draw(st.sampled_from(kinds))

    def run(self) -> None:
        steps = self.course.begin(0.0)
        while steps:
            assert self.outcome == ""
            step, *rest = steps
            more = self.carry_out(step)
            assert not (rest and more), "a step with an outcome is the last of its list"
            steps = [*rest, *more]
        assert self.outcome
        self.check()

    def carry_out(self, step: Step) -> list[Step]:
        course, now = self.course, 0.0
        if isinstance(step, Take):
            if self.draw("granted", "none") == "none":
                return course.not_taken("no-prefill", now)
            self.leased = True
            return course.taken("p")
        if isinstance(step, GiveBack):
            assert self.leased
            self.leased = False
        elif isinstance(step, Prefill):
            assert self.leased
            return self.prefill(now)
        elif isinstance(step, Decode):
            return self.decode(step, now)
        elif isinstance(step, Release):
            assert self.kept or self.pulling
            assert step.addr in self.engines.all
            self.kept = False
            self.pulling.clear()
        elif isinstance(step, Pass):
            self.outcome = "passed"
            end = self.draw("ended", "gone")
            if end == "gone":
                assert course.client_gone(True) == [Cancel()]
            course.ended()
        elif isinstance(step, Refuse):
            self.outcome = f"refused {step.status}"
        return []

    def prefill(self, now: float) -> list[Step]:
        kind = self.draw("handed", "failed", "rejected", "gone")
        if kind == "gone":
            return self.gone(True)
        if kind == "handed":
            self.kept = True
            return self.course.prefilled(PARAMS, 9, 1.0, now)
        return self.course.prefill_failed(kind, "broke" if kind == "failed" else "", now)

    def decode(self, step: Decode, now: float) -> list[Step]:
        assert (step.params is not None) == self.kept, "whoever decodes gets what is kept"
        assert not self.pulling
        assert self.engines.all[step.addr].legs == 1
        self.decoded.append(step)
        kind = self.draw("fine", "rejected", "error", "unreachable", "dead", "cut off", "gone", "gone before")
        if kind in ("unreachable", "gone before"):
            return self.course.lost(False, False, now) if kind == "unreachable" else self.gone(False)
        if self.kept:
            self.kept = False
            self.pulling = {step.addr}
        if kind == "gone":
            self.pulling.clear()  # an engine frees what it holds for a request that is cancelled
            return self.gone(True)
        if kind in ("dead", "cut off"):
            alive = kind == "cut off"
            others = [addr for addr in self.engines.all if addr not in {each.addr for each in self.decoded}]
            if alive or not others:
                self.pulling.clear()  # left to prefill's lease
            return self.course.lost(True, alive, now)
        if kind == "fine":
            self.pulling.clear()
        return self.course.answered({"fine": 200, "rejected": 400, "error": 500}[kind], now)

    def gone(self, sent: bool) -> list[Step]:
        self.outcome = "client gone"
        steps = self.course.client_gone(sent)
        if Linger() in steps and self.leased:
            self.kept = self.draw("kept", "aborted") == "kept"
            if self.kept:
                steps = self.course.prefilled(PARAMS, 9, 1.0, 0.0)
            else:
                steps = self.course.prefill_failed("client-gone", "", 0.0)
        for step in steps:
            if isinstance(step, Release | GiveBack):
                self.carry_out(step)
        self.course.ended()
        return []

    def check(self) -> None:
        assert not self.leased
        assert all((engine.legs, engine.load) == (0, 0) for engine in self.engines.all.values())
        assert not self.pulling
        if self.kept:
            assert self.outcome.startswith("refused"), "no decode engine is left that could give it back"
        with_kv = [step for step in self.decoded if step.params is not None]
        assert len({step.addr for step in with_kv}) == len(with_kv)


@settings(max_examples=400)
@given(st.data(), st.integers(1, 3), st.booleans(), st.sampled_from(["", "", "below-threshold"]))
def test_whatever_fails_the_client_is_answered_once_and_no_kv_is_forgotten(
    data: st.DataObject, decodes: int, required: bool, reason: str
) -> None:
    Model(data, decodes, required, reason).run()


def started(*decodes: str, required: bool = False) -> Course:
    """Prefill has handed its KV over; the decode leg is under way at the first of these."""
    course = Course(Engines(decodes), "", required=required)
    assert course.begin(0.0) == [Take()]
    assert course.taken("p") == [Prefill("p")]
    assert course.prefilled(PARAMS, 700, 12.3, 0.0) == [GiveBack(""), Decode(decodes[0], PARAMS)]
    return course


def test_the_usual_course() -> None:
    course = started("d0", "d1")
    assert course.answered(200, 0.1) == [Pass()]
    assert course.transfer == "vllm;tokens=700;ms=12.30;prefill=p"


def test_a_request_of_one_leg_asks_nobody_else() -> None:
    course = Course(Engines(["d0"]), "below-threshold", required=True)
    assert course.begin(0.0) == [Decode("d0", None)]
    assert course.transfer == "none;reason=below-threshold"


def test_without_prefill_decode_computes_alone_and_says_so() -> None:
    course = Course(Engines(["d0"]), "")
    course.begin(0.0)
    course.taken("p")
    assert course.prefill_failed("prefill-failed", "broke", 0.0) == [GiveBack("broke"), Decode("d0", None)]
    assert course.transfer == "none;reason=prefill-failed"


def test_required_means_refused() -> None:
    course = Course(Engines(["d0"]), "", required=True)
    course.begin(0.0)
    (refused,) = course.not_taken("backing-off", 0.0)
    assert isinstance(refused, Refuse)
    assert (refused.status, "backing-off" in refused.reason) == (503, True)


def test_kv_that_nobody_can_have_touched_goes_to_another_engine() -> None:
    course = started("d0", "d1")
    assert course.lost(False, False, 0.0) == [Decode("d1", PARAMS)]
    (refused,) = course.lost(False, False, 0.0)
    assert isinstance(refused, Refuse)
    assert "d0, d1" in refused.reason
    assert "--decode" in refused.reason


@pytest.mark.parametrize("alive", [True, False])
def test_kv_of_an_engine_that_broke_is_given_back_only_when_it_cannot_be_pulling_any_more(
    alive: bool,
) -> None:
    course = started("d0", "d1")
    release: list[Any] = [] if alive else [Release("d1", PARAMS)]
    assert course.lost(True, alive, 0.0) == [*release, Decode("d1", None)]
    assert course.transfer == "none;reason=decode-failed"


def test_an_engine_whose_pull_failed_may_compute_alone() -> None:
    course = started("d0")
    assert course.answered(500, 0.0) == [Cancel(), Release("d0", PARAMS), Decode("d0", None)]
    assert course.answered(500, 0.0) == [Pass()], "nobody else is left to ask"


def test_a_refusal_is_the_clients_and_frees_prefill() -> None:
    assert started("d0", "d1").answered(400, 0.0) == [Release("d0", PARAMS), Pass()]


def test_a_client_that_goes_before_decode_was_reached_frees_prefill_through_it() -> None:
    assert started("d0").client_gone(False) == [Cancel(), Release("d0", PARAMS)]
    assert started("d0").client_gone(True) == [Linger()], "decode frees what it has been given"


def test_a_client_that_goes_while_prefill_computes_frees_what_it_may_have_kept_by_then() -> None:
    course = Course(Engines(["d0"]), "")
    course.begin(0.0)
    course.taken("p")
    assert course.client_gone(True) == [Linger()]
    assert course.prefilled(PARAMS, 9, 1.0, 0.0) == [GiveBack(""), Release("d0", PARAMS)]
