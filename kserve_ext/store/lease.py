"""A lease in the state store as the elector (elector.py) keeps it, and the fence that goes with it.

The lease says who may lead, by clocks: a leader that was paused between looking at its clock and acting may still
act. So each leader begins a *term* by writing its name under a key of its own, and all that it writes as the leader
is written on the condition that this key is as it left it: a later leader's term, or a store that lost its content,
ends what earlier ones may write.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from kserve_ext.core.election import Claim, ElectionSpec, LeaseRecord
from kserve_ext.store import Conflict, Items, Store, Unavailable
from kserve_ext.store.elector import Away, Outrun

#: At this rate of renewal a leader that is killed is succeeded within four seconds.
LEASE_S: Final = 3.0
RENEW_S: Final = 2.0
RETRY_S: Final = 0.5


class _Kept(NamedTuple):
    holder: str
    duration_s: float
    transitions: int
    acquired: str


class StoreLease:
    """One key; the revision of the key is the version of the lease."""

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self.store = store
        self.key = f"leases/{name}"
        #: of our latest claim
        self.revision = 0

    async def look(self) -> LeaseRecord | None:
        try:
            found = (await self.store.scan(self.key)).get(self.key)
        except Unavailable as error:
            raise Away(str(error)) from error
        return None if found is None else _record(*found)

    async def claim(self, claim: Claim, spec: ElectionSpec) -> LeaseRecord:
        acquired = claim.over.acquired if claim.over and claim.keeps_acquired else ""
        return await self._write(claim.over, _Kept(spec.identity, spec.lease_s, claim.transitions, acquired))

    async def release(self, over: LeaseRecord) -> None:
        await self._write(over, _Kept("", 0.0, over.transitions, ""))

    async def _write(self, over: LeaseRecord | None, kept: _Kept) -> LeaseRecord:
        value = msgspec.msgpack.encode(kept)
        seen = int(over.version) if over else 0
        try:
            self.revision = await self.store.put_now([(self.key, value)], [(self.key, seen)])
        except Conflict as error:
            raise Outrun(str(error)) from error
        except Unavailable as error:
            raise Away(str(error)) from error
        return _record(value, self.revision)


class Term:
    """What the holder of a lease writes, from begin() to the first Conflict. Everything raises Conflict when it is
    over, and Unavailable when nobody knows whether it was written."""

    def __init__(self, lease: StoreLease) -> None:
        self._lease = lease
        self._key = f"terms/{lease.name}"
        self._revision = 0

    async def begin(self, leader: str) -> None:
        """Ends every earlier term: what they have written by now is all that they will have written."""
        lease = self._lease
        while True:
            claimed = lease.revision
            try:
                self._revision = await lease.store.put_now(
                    [(self._key, leader.encode())], [(lease.key, claimed)]
                )
            except Conflict:
                if lease.revision == claimed:
                    raise
            else:
                return

    async def write(self, items: Items) -> None:
        await self._lease.store.put_now(items, [(self._key, self._revision)])


def _record(value: bytes, revision: int) -> LeaseRecord:
    kept = msgspec.msgpack.decode(value, type=_Kept)
    return LeaseRecord(str(revision), kept.holder, kept.duration_s, kept.transitions, kept.acquired)
