"""A changed spec makes a new revision; it takes the traffic when it is ready, and the old one goes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.api.kserve.rollout import (
    AT_REST_S,
    RETIRE_S,
    Observed,
    Rollout,
    Step,
    fingerprint,
    restored,
    step,
    stop,
)
from kserve_ext.core.facts import Command, Model, Resources, Revision, Scale
from kserve_ext.core.ids import RevisionKey

FIRST, SECOND, THIRD = (RevisionKey(f"default/tiny-predictor-{n:05d}") for n in (1, 2, 3))
READY, ZERO = Observed(desired=1, ready=1), Observed()


def wanted(arg: str = "", *, initial: int = 0, low: int = 0) -> Revision:
    return Revision(
        RevisionKey("default/x"),
        "default/tiny",
        0,
        Command(("a", arg)),
        Model(),
        Resources(),
        Scale(low, initial=initial),
    )


def first(**kw: Any) -> Rollout:
    return step(Rollout(), wanted(**kw), {}, 100.0).rollout


def test_the_first_revision_has_the_traffic_at_once() -> None:
    done = step(Rollout(), wanted(initial=1, low=1), {}, 100.0)
    assert done.put is not None
    assert (done.put.key, done.put.generation, done.put.created_at) == (FIRST, 1, 100.0)
    assert done.rollout.serving == done.rollout.latest == FIRST
    assert done.delete == ()


def test_the_same_spec_is_the_same_revision() -> None:
    again = step(first(), wanted(), {}, 200.0)
    assert again == Step(first())


def test_at_zero_the_new_one_takes_over_at_once_and_the_old_one_is_deleted_later() -> None:
    done = step(first(), wanted("b"), {FIRST: ZERO}, 200.0)
    assert done.rollout.serving == SECOND
    assert (done.delete, done.again_at) == ((), 200.0 + RETIRE_S)
    later = step(done.rollout, wanted("b"), {}, 200.0 + RETIRE_S)
    assert later.delete == (FIRST,)
    assert later.rollout.revisions == (SECOND,)


def test_with_traffic_the_old_one_serves_until_the_new_one_is_ready() -> None:
    done = step(first(), wanted("b"), {FIRST: READY}, 200.0)
    assert done.put is not None
    assert done.put.scale.initial == 1, "else nothing would start it"
    assert done.rollout.serving == FIRST
    waiting = step(done.rollout, wanted("b"), {FIRST: READY, SECOND: Observed(desired=1, starting=1)}, 201.0)
    assert (waiting.rollout.serving, waiting.put, waiting.delete) == (FIRST, None, ())
    taken = step(waiting.rollout, wanted("b"), {FIRST: READY, SECOND: READY}, 202.0)
    assert taken.rollout.serving == SECOND


def test_initial_scale_is_awaited() -> None:
    done = step(first(), wanted("b", initial=2), {FIRST: ZERO}, 200.0)
    assert done.rollout.serving == FIRST
    assert step(done.rollout, wanted("b", initial=2), {SECOND: READY}, 201.0).rollout.serving == FIRST
    two = Observed(desired=2, ready=2)
    assert step(done.rollout, wanted("b", initial=2), {SECOND: two}, 201.0).rollout.serving == SECOND


def test_a_failed_one_never_takes_over_and_a_better_one_replaces_it() -> None:
    done = step(first(), wanted("bad"), {FIRST: READY}, 200.0)
    failed = {FIRST: READY, SECOND: Observed(failed=1, reason="bad flag", permanent=True)}
    stuck = step(done.rollout, wanted("bad"), failed, 200.0 + AT_REST_S)
    assert stuck.rollout.serving == FIRST
    fixed = step(stuck.rollout, wanted("good"), failed, 300.0)
    assert fixed.delete == (SECOND,)
    assert fixed.rollout.latest == THIRD


def test_a_broken_one_gives_the_traffic_to_its_successor_at_once() -> None:
    broken = {FIRST: Observed(desired=1, failed=1, reason="bad flag", permanent=True)}
    done = step(first(), wanted("fixed", initial=1), broken, 200.0)
    assert done.rollout.serving == SECOND
    at_zero = step(first(), wanted("fixed"), broken, 200.0)
    assert at_zero.put is not None
    assert at_zero.put.scale.initial == 0


def test_one_that_was_ready_unseen_takes_over() -> None:
    done = step(first(), wanted("b"), {FIRST: READY}, 200.0)
    observed = {FIRST: READY, SECOND: ZERO}
    assert step(done.rollout, wanted("b"), observed, 201.0).rollout.serving == FIRST
    assert step(done.rollout, wanted("b"), observed, 200.0 + AT_REST_S).rollout.serving == SECOND


def test_the_min_scale_is_of_the_one_that_has_the_traffic() -> None:
    done = step(first(), wanted("b", initial=1, low=1), {FIRST: ZERO}, 200.0).rollout
    assert (done.serving, done.serving_min, done.latest_min) == (FIRST, 0, 1)
    taken = step(done, wanted("b", initial=1, low=1), {SECOND: READY}, 201.0).rollout
    assert (taken.serving, taken.serving_min) == (SECOND, 1)


def test_ready_is_what_had_the_traffic_and_its_instances() -> None:
    assert first().ready == FIRST, "it needs no instance"
    made = first(initial=1)
    assert made.ready is None
    starting = {FIRST: Observed(desired=1, starting=1)}
    assert step(made, wanted(initial=1), starting, 101.0).rollout.ready is None
    failed = {FIRST: Observed(desired=1, failed=1, reason="bad flag", permanent=True)}
    assert step(made, wanted(initial=1), failed, 100.0 + AT_REST_S).rollout.ready is None
    well = step(made, wanted(initial=1), {FIRST: READY}, 102.0).rollout
    assert well.ready == FIRST
    assert step(well, wanted(initial=1), {FIRST: ZERO}, 300.0).rollout.ready == FIRST
    next_one = step(well, wanted("b", initial=1), {FIRST: READY}, 300.0).rollout
    assert (next_one.latest, next_one.ready) == (SECOND, FIRST)
    assert step(next_one, wanted("b", initial=1), {SECOND: READY}, 301.0).rollout.ready == SECOND


def test_one_that_was_ready_unseen_counts_as_ready_once_it_is_at_rest() -> None:
    made = step(first(initial=1), wanted(initial=1), {FIRST: ZERO}, 101.0)
    assert (made.rollout.ready, made.again_at) == (None, 100.0 + AT_REST_S)
    assert step(made.rollout, wanted(initial=1), {FIRST: ZERO}, made.again_at).rollout.ready == FIRST


def test_an_invalid_spec_changes_nothing() -> None:
    assert step(first(), None, {FIRST: READY}, 300.0) == Step(first())


def test_numbers_go_on_after_a_stop() -> None:
    stopped = stop(first())
    assert stopped.delete == (FIRST,)
    again = step(stopped.rollout, wanted(), {}, 300.0)
    assert again.rollout.latest == SECOND


def test_the_fingerprint_ignores_only_number_and_time() -> None:
    base = wanted()
    assert fingerprint(base._replace(generation=7, created_at=9.0)) == fingerprint(base)
    assert fingerprint(base._replace(concurrency=1)) != fingerprint(base)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.integers(0, 1), st.floats(0.1, 200)),
        max_size=30,
    )
)
def test_whatever_happens_one_revision_serves_and_none_is_leaked(
    changes: list[tuple[str, int, int, float]],
) -> None:
    rollout, now = Rollout(), 0.0
    exist: set[RevisionKey] = set()
    made: list[int] = []
    for arg, initial, ready, pause in changes:
        now += pause
        observed = {key: Observed(desired=ready, ready=ready) for key in exist}
        done = step(rollout, wanted(arg, initial=initial), observed, now)
        rollout = done.rollout
        if done.put is not None:
            exist.add(done.put.key)
            made.append(done.put.generation)
        exist -= set(done.delete)
        assert rollout.serving in exist
        assert set(rollout.revisions) == exist
    assert made == sorted(set(made))


def test_what_a_clock_that_was_set_back_had_stored_is_not_in_the_future() -> None:
    kept = Rollout(since=9000.0, retiring=((FIRST, 9000.0), (SECOND, 50.0)))
    known = restored(kept, 100.0)
    assert known.since == 100.0
    assert [since for _, since in known.retiring] == [100.0, 50.0]
