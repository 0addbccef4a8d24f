"""The state store: a copy of what the functions know. Written behind, read when a function starts or takes over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

Items = Iterable[tuple[str, bytes | None]]  # key, value; None deletes
OnItems = Callable[[dict[str, bytes]], None]  # everything under the prefix, at the start and after a gap
OnChange = Callable[[str, bytes | None], None]  # one change after that; None = deleted


class Store(Protocol):
    """What every adapter offers. Nothing but put_now, scan and the first answer of a watch ever waits."""

    def put(self, items: Items) -> None:
        """Writes behind: returns at once, coalesced by key, kept and retried while the store is away."""

    async def put_now(self, items: Items, expect: Iterable[tuple[str, int]] = ()) -> int:
        """Writes and waits; `expect` makes it conditional on revisions (0 = absent). Raises Conflict or Unavailable.

        After Unavailable the write may have been done all the same, or may yet be, but never over a later one of
        this process.
        """

    async def scan(self, prefix: str) -> dict[str, tuple[bytes, int]]:
        """Value and revision of every key under `prefix`. Raises Unavailable."""

    def watch(self, prefix: str, on_items: OnItems, on_change: OnChange) -> None:
        """Follows a prefix ("instances/") for the life of the process, over losses of the store (following.py)."""

    def restate(self, items: Callable[[], Items], whole: Iterable[str] = ()) -> None:
        """What this process knows, written again when the store has lost its content.

        `whole`: prefixes under which nobody else writes, so that what isn't restated there has gone.
        """

    async def flush(self, timeout_s: float) -> bool:
        """Waits until what was put is written, `timeout_s` at most; whether it is."""

    async def close(self) -> None:
        """Ends watches and writing; what isn't written by then is not written."""


class Conflict(Exception):
    """A conditional write found another revision; nothing was written."""


class Unavailable(Exception):
    """The store did not answer; the text says which and why."""


__all__ = ["Conflict", "Items", "OnChange", "OnItems", "Store", "Unavailable"]
