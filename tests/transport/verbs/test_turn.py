"""The lock of a queue pair: one at a time, and who waits has it next or gives up."""

from __future__ import annotations

import threading

import pytest

from runtimes.transport.verbs.turn import Turn


def test_one_at_a_time() -> None:
    turn, inside, most = Turn(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(2000):
            with turn:
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)


def test_who_waits_has_it_when_it_is_given_back() -> None:
    turn = Turn()
    assert turn.acquire(0)
    assert not turn.acquire(0)
    assert not turn.acquire(0.001)
    had: list[bool] = []
    waits = threading.Thread(target=lambda: had.append(turn.acquire(30.0)))
    waits.start()
    turn.release()
    waits.join()
    assert had == [True]
    assert not turn.acquire(0)


def test_an_error_gives_it_back() -> None:
    turn = Turn()
    with pytest.raises(KeyError), turn:
        raise KeyError
    assert turn.acquire(0)
