"""What a process knows of itself: which one of its name it is, whatever was done to the machine's clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_ext.rpc import process as module
from kserve_ext.rpc.process import Process, steady_clock


class Clock:
    """The machine's clocks: set by people, and never."""

    def __init__(self) -> None:
        self.wall, self.steady = 1e9, 50.0

    def time(self) -> float:
        return self.wall

    def time_ns(self) -> int:
        return int(self.wall * 1e9)

    def monotonic(self) -> float:
        return self.steady


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_later_process_is_a_higher_incarnation_also_when_the_clock_was_set_back(
    clock: Clock, tmp_path: Path
) -> None:
    incarnations = []
    for change in (0.0, 1.0, -7200.0, 0.0, 86_400.0):
        clock.wall += change
        incarnations.append(Process("schedule-0", "schedule", tmp_path, "c:1", "h", 0)._incarnation())
    assert incarnations == sorted(set(incarnations))
    assert Process("schedule-1", "schedule", tmp_path, "c:1", "h", 0)._incarnation() == clock.time_ns()


def test_a_steady_clock_goes_on_evenly(clock: Clock) -> None:
    now = steady_clock()
    assert now() == 1e9
    clock.wall -= 7200.0
    clock.steady += 3.0
    assert now() == 1e9 + 3.0
