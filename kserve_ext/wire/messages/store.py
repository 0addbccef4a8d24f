"""Anybody <-> state store, which the controller hosts in the embedded default.

`life` in an answer names what was never lost since it was first said: another one means that the store began anew.
"""

from __future__ import annotations

from kserve_ext.wire.messages.base import Message


class StorePut(Message, frozen=True):
    """Writes, in order; a value of None deletes. `expect` (revision of the key, 0 = absent) makes it conditional.

    `sequence` grows with each of a writer's: one that arrives after a later one is late, and not done.
    """

    items: tuple[tuple[str, bytes | None], ...]
    expect: tuple[tuple[str, int], ...] = ()
    writer: str = ""
    sequence: int = 0


class StorePutReply(Message, frozen=True):
    ok: bool
    revision: int
    conflict: str = ""
    life: str = ""
    late: bool = False


class StoreScan(Message, frozen=True):
    prefix: str


class StoreItems(Message, frozen=True):
    """`items` are key, value, revision of the last write."""

    items: tuple[tuple[str, bytes, int], ...]
    revision: int
    life: str = ""


class StoreWatch(Message, frozen=True):
    """Long poll: answers as soon as something under `prefix` is newer than `after`, or at the deadline, empty.

    `reset` in the answer: history since `after` is gone, scan again.
    """

    prefix: str
    after: int


class StoreChanges(Message, frozen=True):
    items: tuple[tuple[str, bytes | None, int], ...]
    revision: int
    reset: bool = False
    life: str = ""
