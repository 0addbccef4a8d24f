"""What a Dispatch function writes into its history (kserve_ext/rpc/history.py), as home and as shard.

As home: which revisions it is the home of and under which term, which instances it knows, between which bounds it
decides, what it grants, places and stops. As shard: each request's way, and the Grants that it obeys.
"""

from __future__ import annotations

from collections.abc import Iterable

from kserve_ext.core.dispatch.facts import Grant, Instruction, Place, SendGrant, StopInstance
from kserve_ext.core.dispatch.home import Home
from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey
from kserve_ext.rpc.history import History
from kserve_ext.wire import messages as m


class HomeHistory:
    """Callers ask `on` first."""

    def __init__(self, history: History) -> None:
        self.history = history
        #: what was said last of each revision
        self._said: dict[RevisionKey, tuple[object, ...]] = {}

    @property
    def on(self) -> bool:
        return self.history.on

    def carried(self, home: Home | None, instructions: Iterable[Instruction]) -> None:
        """After an event: what has changed, then what is asked of others."""
        for key, of in home.revisions.items() if home is not None else ():
            known = sorted((k.id, k.state, k.node, k.doomed_at is not None) for k in of.fleet.known.values())
            facts = (of.term, of.open, of.agreed, of.deleted, known)
            if self._said.get(key) != facts:
                self._said[key] = facts
                self.history.say(
                    "home",
                    revision=key,
                    term=of.term,
                    open=of.open,
                    agreed=of.agreed,
                    bounds=(of.spec.min, of.spec.max),
                    deleted=of.deleted,
                    known=known,
                )
        for i in instructions:
            match i:
                case Place(items, gang):
                    asked = [(revision.key, ids) for revision, ids in items]
                    self.history.say("place", items=asked, gang=gang)
                case SendGrant(shard, grant):
                    self.granted(shard, grant)
                case StopInstance(revision, instance, node, _, reason):
                    self.history.say("stopping", revision=revision, instance=instance, node=node, why=reason)

    def granted(self, shard: FunctionID, grant: Grant) -> None:
        slots = [(i, n) for i, _, n in grant.slots]
        self.history.say(
            "grant", revision=grant.revision, shard=shard, term=grant.term, seq=grant.seq, slots=slots
        )

    def left(self, keys: Iterable[RevisionKey]) -> None:
        """No longer the home of these."""
        for key in keys:
            self._said.pop(key, None)
            self.history.say("unhome", revision=key)


class ShardHistory:
    """Callers ask `on` first: it is on every request's path."""

    def __init__(self, history: History) -> None:
        self.history = history

    @property
    def on(self) -> bool:
        return self.history.on

    def knows(self, key: RevisionKey, gone: bool) -> None:
        self.history.say("knows", revision=key, gone=gone)

    def accepted(self, request: bytes, key: RevisionKey) -> None:
        self.history.say("accepted", request=request.decode("latin-1"), revision=key)

    def sent(self, request: bytes, key: RevisionKey, instance: InstanceID) -> None:
        self.history.say("sent", request=request.decode("latin-1"), revision=key, instance=instance)

    def answered(self, request: bytes, outcome: str) -> None:
        self.history.say("answered", request=request.decode("latin-1"), outcome=outcome)

    def obeyed(self, grant: m.Grant) -> None:
        slots = [(i, n) for i, _, n in grant.slots]
        self.history.say("obeyed", revision=grant.revision, term=grant.term, seq=grant.seq, slots=slots)
