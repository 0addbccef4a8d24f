"""Whether an engine is hung: by its turns, its rest and time."""

from __future__ import annotations

from runtimes.vllm_pd.hang import Steps


def looks(steps: Steps, turns: list[int], *, since: float = 100.0, at_rest: bool = False) -> list[bool]:
    """One look a second."""
    return [steps.hung(count, at_rest, since + second) for second, count in enumerate(turns)]


def test_a_step_that_does_not_end() -> None:
    assert looks(Steps(3.0), [1, 2, 2, 2, 2, 2]) == [False] * 5 + [True]


def test_steps_that_take_long_and_end() -> None:
    assert not any(looks(Steps(3.0), [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4]))


def test_an_engine_that_has_nothing_to_do() -> None:
    steps = Steps(3.0)
    assert not any(looks(steps, [7] * 20, at_rest=True))
    assert not steps.hung(7, False, 120.0), "it has only just been given something"


def test_a_process_that_was_stopped_is_given_time() -> None:
    steps = Steps(3.0)
    looks(steps, [1, 1, 1])
    assert looks(steps, [1, 1, 1, 1], since=500.0) == [False] * 4
    assert steps.hung(1, False, 504.0)


def test_it_can_be_switched_off() -> None:
    assert not any(looks(Steps(0.0), [1] * 100))
