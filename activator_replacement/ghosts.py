"""Shards that left the view so lately that they may still be alive, and use what a home gave them: ghosts.

A ghost is one for as long as its leases last at most. It is none any more when it is back in the view, or when its
process is seen to have ended: nobody listens where it did on this machine. Its connections to instances have ended
then, too, and with them their work for it. Of another machine's refusal it isn't known who says so (a firewall may),
so there leases end by time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from kserve_ext.core.dispatch.facts import LEASE_TTL_S
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

    def ask(self, now: float) -> None:
        """Whether they are still there; again and again, since one may be on its way out."""
        self.left = {f: ghost for f, ghost in self.left.items() if now - ghost.since < LEASE_TTL_S}
        here = _host(self._membership.addr)
        for shard, ghost in self.left.items():
            if _host(ghost.addr) == here:
                said = partial(self._said, shard, ghost)
                self._rpc.call_soon(ghost.addr, m.Describe("request"), said, TIMEOUT_S)

    def _said(self, shard: FunctionID, ghost: Ghost, reply: m.Message | RpcError) -> None:
        if isinstance(reply, RpcError) and reply.nobody and self.left.get(shard) == ghost:
            log.info("%s has ended: what it used is free", shard)
            del self.left[shard]
            self._ended(shard)


def _host(addr: str) -> str:
    return addr.rpartition(":")[0]
