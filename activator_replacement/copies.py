"""The store's copy of what homes know: where instances are, and what a revision's status is. Written behind.

What changes several times in one turn of the loop is written once. The copy of instances is read when a home takes
over; the statuses are read by the objects process (kserve_ext/api/kserve/rollout.py: Observed).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterator

import msgspec

from kserve_ext.core.dispatch.facts import Remember
from kserve_ext.core.dispatch.home import Home
from kserve_ext.core.dispatch.revision_home import RevisionHome
from kserve_ext.core.dispatch.take_over import Copy
from kserve_ext.core.ids import InstanceID, NodeID, RevisionKey
from kserve_ext.rpc.process import wall_time
from kserve_ext.store import Store

STATUS_S = 0.1

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, str]).decode


class Copies:
    """`mine` says whether a revision's home is here."""

    def __init__(self, store: Store, mine: Callable[[RevisionKey], bool]) -> None:
        self.store = store
        self.loop = asyncio.get_running_loop()
        #: the store's copy of the instances has come once
        self.complete = asyncio.Event()
        self._mine = mine
        self._known: dict[RevisionKey, dict[InstanceID, Copy]] = {}
        self._status: dict[RevisionKey, tuple[dict[str, object], float]] = {}
        #: to be written at the end of this turn
        self._changed: dict[tuple[RevisionKey, InstanceID], Remember] = {}
        store.watch("instances/", self._all, self._change)
        store.restate(self._restated)

    def of(self, key: RevisionKey) -> tuple[Copy, ...]:
        return tuple(self._known.get(key, {}).values())

    def remember(self, i: Remember) -> None:
        if not self._changed:
            self.loop.call_soon(self._write)
        self._changed[i.revision, i.instance] = i

    def forget_status(self, key: RevisionKey) -> None:
        """It has no home here any more: the next one writes another."""
        self._status.pop(key, None)

    def write_status(self, home: Home, there: Container[RevisionKey], now: float) -> None:
        """Of those revisions that are there, where it has changed, but not too often."""
        for key, revision_home in home.revisions.items():
            before, at = self._status.get(key, ({}, float("-inf")))
            if now - at < STATUS_S or key not in there:
                continue
            facts = status_of(revision_home)
            if facts != before:
                self._status[key] = (facts, now)
                self.store.put([_status_item(key, facts)])

    # --- inside

    def _write(self) -> None:
        changed, self._changed = self._changed, {}
        self.store.put(
            [
                (f"instances/{i.revision}/{i.instance}", _encode((i.node, i.addr)) if i.node else None)
                for i in changed.values()
            ]
        )

    def _restated(self) -> Iterator[tuple[str, bytes]]:
        """What a store that lost its content is told: of the revisions that are at home here."""
        for key, copies in self._known.items():
            if self._mine(key):
                for copy in copies.values():
                    yield f"instances/{key}/{copy.instance}", _encode((copy.node, copy.addr))
        for key, (facts, _) in self._status.items():
            yield _status_item(key, facts)

    def _all(self, items: dict[str, bytes]) -> None:
        self._known = {}
        for key, value in items.items():
            self._change(key, value)
        self.complete.set()

    def _change(self, key: str, value: bytes | None) -> None:
        revision, _, name = key.partition("/")[2].rpartition("/")
        of_revision = self._known.setdefault(RevisionKey(revision), {})
        instance = InstanceID(name)
        if value is None:
            of_revision.pop(instance, None)
            if not of_revision:
                del self._known[RevisionKey(revision)]
        else:
            node, addr = _decode(value)
            of_revision[instance] = Copy(instance, NodeID(node), addr)


def _status_item(key: RevisionKey, facts: dict[str, object]) -> tuple[str, bytes]:
    return f"status/{key}", msgspec.json.encode({**facts, "at": wall_time()})


def status_of(home: RevisionHome) -> dict[str, object]:
    """What the objects process reads under status/."""
    fleet = home.fleet
    return {
        "desired": home.agreed,
        "ready": fleet.ready,
        "starting": max(0, fleet.wanted - fleet.ready),
        "failed": home.setbacks.count if home.setbacks.reason else 0,
        "reason": home.setbacks.reason if not fleet.ready else "",
        "permanent": home.failed,
        "phase": home.goal.activity.phase,
        "held": home.held,
        "short": home.setbacks.reason if 0 < fleet.ready < home.agreed else "",
    }
