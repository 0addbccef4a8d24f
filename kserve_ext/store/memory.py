"""The embedded store's content: a map with revisions, conditional writes and a bounded history for watchers. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

HISTORY = 20_000


class Change(NamedTuple):
    key: str
    value: bytes | None
    revision: int


class Memory:
    """One revision counter for all keys; every write of a key takes the next one."""

    def __init__(self) -> None:
        self.revision = 0
        self._values: dict[str, tuple[bytes, int]] = {}
        self._history: deque[Change] = deque(maxlen=HISTORY)

    def conflict(self, expect: Iterable[tuple[str, int]]) -> str:
        """The first expectation that doesn't hold, for a person; "" if all do. Revision 0 = absent."""
        for key, revision in expect:
            found = self._values.get(key, (b"", 0))[1]
            if found != revision:
                return f"{key}: expected revision {revision}, found {found}"
        return ""

    def put(self, items: Iterable[tuple[str, bytes | None]]) -> list[Change]:
        """Applies the writes in order."""
        changes = self.changes_of(items)
        self.apply(changes)
        return changes

    def changes_of(self, items: Iterable[tuple[str, bytes | None]]) -> list[Change]:
        """What apply() takes for these writes, in order; deleting what is absent changes nothing."""
        changes: list[Change] = []
        present: dict[str, bool] = {}
        for key, value in items:
            if value is None and not present.get(key, key in self._values):
                continue
            present[key] = value is not None
            changes.append(Change(key, value, self.revision + len(changes) + 1))
        return changes

    def apply(self, changes: list[Change]) -> None:
        for key, value, revision in changes:
            if value is None:
                del self._values[key]
            else:
                self._values[key] = (value, revision)
            self.revision = revision
        self._history.extend(changes)

    def scan(self, prefix: str) -> list[tuple[str, bytes, int]]:
        """Key, value and revision of what is under `prefix`, in order of keys."""
        return sorted((k, v, r) for k, (v, r) in self._values.items() if k.startswith(prefix))

    def changes(self, prefix: str, after: int) -> list[Change] | None:
        """Changes under `prefix` newer than `after`; None when history doesn't reach back that far."""
        if after > self.revision:
            return None  # another life of the store
        if after < self.revision and (not self._history or self._history[0].revision > after + 1):
            return None
        newer: deque[Change] = deque()
        for change in reversed(self._history):
            if change.revision <= after:
                break
            if change.key.startswith(prefix):
                newer.appendleft(change)
        return list(newer)

    def restore(self, revision: int, values: Iterable[tuple[str, bytes, int]]) -> None:
        """Takes over a snapshot; watchers from before it scan again."""
        self._values = {k: (v, r) for k, v, r in values}
        self.revision = revision
        self._history.clear()
