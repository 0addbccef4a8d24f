"""What is below a slot, in a made-up table of processes: nobody gets away who forks between a look and a kill."""

from __future__ import annotations

import signal
from itertools import count

import pytest

from autoscaler_shim.slot import descendants
from autoscaler_shim.slot.descendants import end_strays

SLOT, SERVER = 1, 2


class Processes:
    """Ended ones stay as the slot's children, as they do until they are reaped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.children: dict[int, list[int]] = {SLOT: [SERVER], SERVER: [3]}
        self.ended: set[int] = set()
        self.last = 3
        monkeypatch.setattr("os.getpid", lambda: SLOT)
        monkeypatch.setattr("os.kill", self.kill)
        monkeypatch.setattr(descendants, "_ended", lambda pid: pid in self.ended)
        monkeypatch.setattr(descendants, "_children", lambda pid: list(self.children.get(pid, ())))

    def fork(self, parent: int) -> int:
        self.last += 1
        self.children.setdefault(parent, []).append(self.last)
        return self.last

    def end(self, pid: int) -> None:
        self.ended.add(pid)
        self.children[SLOT] += self.children.pop(pid, [])

    def kill(self, pid: int, number: int) -> None:
        assert number == signal.SIGKILL
        self.end(pid)

    @property
    def alive(self) -> set[int]:
        return {pid for pids in self.children.values() for pid in pids} - self.ended


def test_what_is_left_goes_with_what_is_below_it_and_what_is_kept_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Processes(monkeypatch)
    left = made.fork(SLOT)
    below = made.fork(made.fork(left))
    assert end_strays({SERVER})[0] == left
    assert below in made.ended
    assert made.alive == {SERVER, 3}


def test_a_chain_of_forks_does_not_outlive_its_last_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Processes(monkeypatch)
    first, hops = made.fork(SLOT), 20

    def kill(pid: int, number: int) -> None:
        nonlocal hops
        if pid not in made.ended and hops:  # it was just about to fork and to end
            hops -= 1
            made.fork(pid)
        made.kill(pid, number)

    monkeypatch.setattr("os.kill", kill)
    assert len(end_strays({SERVER})) == 21
    assert first in made.ended
    assert (made.alive, hops) == ({SERVER, 3}, 0)


def test_one_that_changes_parents_during_a_look_is_found_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Processes(monkeypatch)
    parent = made.fork(SLOT)
    child = 0

    def kill(pid: int, number: int) -> None:
        nonlocal child
        if pid == parent and not child:
            child = made.fork(parent)  # and its own end takes a while
        else:
            made.kill(pid, number)

    def children(pid: int) -> list[int]:
        if pid == parent and child:
            made.end(parent)  # between the look at the slot's children and this one
        return list(made.children.get(pid, ()))

    monkeypatch.setattr("os.kill", kill)
    monkeypatch.setattr(descendants, "_children", children)
    end_strays({SERVER})
    assert child in made.ended
    assert made.alive == {SERVER, 3}


def test_whoever_forks_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Processes(monkeypatch)
    made.fork(SLOT)

    def kill(pid: int, number: int) -> None:
        made.fork(pid)
        made.kill(pid, number)

    monkeypatch.setattr("os.kill", kill)
    ticks = count()
    monkeypatch.setattr("time.monotonic", lambda: next(ticks) * 0.01)
    assert len(end_strays({SERVER})) == 99, "in a second, by 10 ms a look"
