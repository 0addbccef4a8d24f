"""Shards that left the view so lately that they may still be alive, and use what a home gave them: ghosts.

A ghost of this machine is *seen*: it is one until its process has ended, since nobody listens where it did. Its
connections to instances have ended then, too, and with them their work for it. Until then it may only be paused, and
its requests go on. Of another machine's refusal it isn't known who says so (a firewall may): leases end by time.
A ghost that is back in the view is none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from kserve_ext.core.dispatch.facts import LEASE_TTL_S, SEEN_TTL_S
from kserve_ext.core.facts import Member
from kserve_ext.core.ids import FunctionID
from kserve_ext.rpc import Rpc, RpcError
from kserve_ext.rpc.membership import Membership
from kserve_ext.wire import messages as m

log = logging.getLogger(__name__)

TIMEOUT_S = 1.0


class Ghost(NamedTuple):
    since: float
    addr: str


class Ghosts:
    def __init__(self, rpc: Rpc, membership: Membership, ended: Callable[[FunctionID], None]) -> None:
        """`ended` is told of a ghost whose process has ended."""
        self._rpc = rpc
        self._membership = membership
        self._ended = ended
        #: the view's shards, and where they listen
        self._there: dict[FunctionID, str] = {}
        self.left: dict[FunctionID, Ghost] = {}

    def view(self, members: Iterable[Member], now: float) -> None:
        there = {FunctionID(x.id): x.addr for x in members}
        gone = {f: Ghost(now, addr) for f, addr in self._there.items() if f not in there}
        self.left = {f: ghost for f, ghost in self.left.items() if f not in there} | gone
        self._there = there

    @property
    def seen(self) -> set[FunctionID]:
        """Those whose end is noticed."""
        return {shard for shard, ghost in self.left.items() if self._here(ghost)}

    def ask(self, now: float) -> None:
        """Whether they are still there; again and again, since one may be on its way out."""
        lasts = {True: SEEN_TTL_S, False: LEASE_TTL_S}
        self.left = {f: g for f, g in self.left.items() if now - g.since < lasts[self._here(g)]}
        for shard, ghost in self.left.items():
            if self._here(ghost):
                said = partial(self._said, shard, ghost)
                self._rpc.call_soon(ghost.addr, m.Describe("request"), said, TIMEOUT_S)

    def _here(self, ghost: Ghost) -> bool:
        return _host(ghost.addr) == _host(self._membership.addr)

    def _said(self, shard: FunctionID, ghost: Ghost, reply: m.Message | RpcError) -> None:
        if isinstance(reply, RpcError) and reply.nobody and self.left.get(shard) == ghost:
            log.info("%s has ended: what it used is free", shard)
            del self.left[shard]
            self._ended(shard)


def _host(addr: str) -> str:
    return addr.rpartition(":")[0]
