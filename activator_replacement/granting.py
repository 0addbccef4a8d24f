"""Grants that homes push to shards: all of one turn of the loop in one message a shard, the newest of each revision.

What a shard says when it has obeyed goes back to the home that granted. A message that is lost is made up for by
the home, which pushes again what isn't acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from activator_replacement.accounts import demand_facts
from activator_replacement.outward import Outward
from kserve_ext.core.dispatch.facts import Grant, SendGrant
from kserve_ext.core.ids import FunctionID, RevisionKey
from kserve_ext.rpc import RpcError
from kserve_ext.wire import messages as m

TIMEOUT_S = 1.0


class Granting:
    def __init__(self, outward: Outward) -> None:
        self.rpc, self.membership, self.homes, self.carry = outward
        self.loop = asyncio.get_running_loop()
        #: of this turn, with the home that grants
        self._due: dict[FunctionID, dict[RevisionKey, tuple[str, Grant]]] = {}

    def push(self, home_key: str, i: SendGrant) -> None:
        if not self._due:
            self.loop.call_soon(self._send)
        self._due.setdefault(i.shard, {})[i.grant.revision] = (home_key, i.grant)

    # --- inside

    def _send(self) -> None:
        due, self._due = self._due, {}
        me, addr, epoch = self.membership.me, self.membership.addr, self.membership.view.epoch
        for shard, grants in due.items():
            actions = tuple([m.Grant(*grant) for _, grant in grants.values()])
            homes = {key: home_key for key, (home_key, _) in grants.items()}
            message = m.Coordinate(me, addr, epoch, actions)
            self.rpc.call_soon(self.membership.addr_of(shard), message, self._obeyed(shard, homes), TIMEOUT_S)

    def _obeyed(
        self, shard: FunctionID, homes: Mapping[RevisionKey, str]
    ) -> Callable[[m.Message | RpcError], None]:
        def done(reply: m.Message | RpcError) -> None:
            if not isinstance(reply, m.CoordinateReply):
                return
            now = self.loop.time()
            for action in reply.actions:
                if isinstance(action, m.Demand) and action.revision in homes:
                    home_key = homes[action.revision]
                    home = self.homes.get(home_key)
                    if home is not None:
                        self.carry(home_key, home.obeyed(shard, demand_facts(action), now))

        return done
