"""Prompts that this engine computes itself and that have no first token yet: the queue that a new prompt would join.

Pure: whether a prompt has its first token is asked when somebody wants to know how long the queue is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable


class Backlog:
    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[int, Callable[[], bool]]] = {}

    def add(self, tokens: int, begun: Callable[[], bool]) -> int:
        """`begun`: its first token is there. The number is for remove()."""
        number = next(self._numbers)
        self._waiting[number] = tokens, begun
        return number

    def remove(self, number: int) -> None:
        """Its request has ended, in whatever way."""
        self._waiting.pop(number, None)

    @property
    def tokens(self) -> int:
        self._waiting = {n: one for n, one in self._waiting.items() if not one[1]()}
        return sum(tokens for tokens, _ in self._waiting.values())
