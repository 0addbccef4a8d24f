"""How many requests the user's server has at once, and who waits: in the order of arrival, ten times as many.

In Knative: pkg/queue/breaker.go, whose waiters are woken in no order. Concurrency 0 = no limit, and nobody waits.

Hot dialect: slots, a few additions per request.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

T = TypeVar("T")

GO: Final = 0
HELD: Final = 1
FULL: Final = 2
_DEPTH: Final = 10  # times the concurrency


class Breaker(Generic[T]):
    __slots__ = ("_concurrency", "_held", "in_flight")

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        #: In the order of arrival; the values mean nothing.
        self._held: dict[T, None] = {}
        self.in_flight = 0

    @property
    def held(self) -> int:
        return len(self._held)

    @property
    def pending(self) -> int:
        """In flight and held."""
        return self.in_flight + len(self._held)

    def submit(self, request: T) -> int:
        """GO, HELD (until release or cancel) or FULL."""
        concurrency = self._concurrency
        if not concurrency or self.in_flight < concurrency:
            self.in_flight += 1
            return GO
        if len(self._held) >= _DEPTH * concurrency:
            return FULL
        self._held[request] = None
        return HELD

    def release(self) -> T | None:
        """One that went is done; the next one that goes."""
        held = self._held
        if held:
            request = next(iter(held))
            del held[request]
            return request
        self.in_flight -= 1
        return None

    def cancel(self, request: T) -> None:
        """One that is held ended."""
        del self._held[request]

    def dismiss(self) -> list[T]:
        """All that are held, which are not any more."""
        held = list(self._held)
        self._held.clear()
        return held
