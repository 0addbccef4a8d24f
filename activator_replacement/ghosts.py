"""Asks ghosts (core/dispatch/ghosts.py) of this machine whether their processes still listen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from kserve_ext.core.dispatch import ghosts
from kserve_ext.core.dispatch.ghosts import Ghost
from kserve_ext.core.facts import View
from kserve_ext.core.ids import FunctionID
from kserve_ext.rpc import Rpc, RpcError
from kserve_ext.rpc.membership import Membership
from kserve_ext.wire import messages as m

log = logging.getLogger(__name__)

TIMEOUT_S = 1.0


class Ghosts:
    def __init__(self, rpc: Rpc, membership: Membership, ended: Callable[[FunctionID], None]) -> None:
        """`ended` is told of a ghost whose process has ended, or must have."""
        self._rpc = rpc
        self._ended = ended
        self._core = ghosts.Ghosts(membership.addr)

    def view(self, view: View, now: float) -> None:
        self._core.view((x for x in view.members if x.kind == "dispatch"), view.left, now)

    @property
    def left(self) -> dict[FunctionID, Ghost]:
        return self._core.left

    @property
    def seen(self) -> set[FunctionID]:
        """Those whose end is told."""
        return self._core.seen

    def ask(self, now: float) -> None:
        """Whether they are still there; again and again, since one may be on its way out."""
        for shard in self._core.tick(now):
            log.info("%s left long ago: what it used is free", shard)
            self._ended(shard)
        for shard, ghost in self._core.asked:
            said = partial(self._said, shard, ghost)
            self._rpc.call_soon(ghost.addr, m.Describe("request"), said, TIMEOUT_S)

    def _said(self, shard: FunctionID, ghost: Ghost, reply: m.Message | RpcError) -> None:
        if isinstance(reply, RpcError) and reply.nobody and self._core.ended(shard, ghost):
            log.info("%s has ended: what it used is free", shard)
            self._ended(shard)
