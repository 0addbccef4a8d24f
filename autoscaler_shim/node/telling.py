"""What a node says unasked: ModInstance to homes and waiting shards, Update to its ClusterMgr function.

Nothing waits for these calls. A status that changes many times in one moment is sent once; a call that is lost
is made up for by the next periodic one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from kserve_ext.core import partitions
from kserve_ext.core.facts import View
from kserve_ext.core.ids import FunctionID
from kserve_ext.core.node.facts import Instruction, Tell
from kserve_ext.core.node.machine import NodeMachine
from kserve_ext.rpc import Rpc, RpcError
from kserve_ext.rpc.membership import Membership
from kserve_ext.wire.messages import Message, ModInstance, ModInstanceReply, Update

UPDATE_PERIOD_S = 0.5
SOON_S = 0.005
CALL_TIMEOUT_S = 1.0


class Telling:
    def __init__(
        self,
        machine: NodeMachine,
        rpc: Rpc,
        membership: Membership,
        now: Callable[[], float],
        carry_out: Callable[[Iterable[Instruction]], None],
    ) -> None:
        self.machine, self.rpc, self.membership = machine, rpc, membership
        self.now, self.carry_out = now, carry_out
        self._soon: asyncio.TimerHandle | None = None
        #: the ClusterMgr function of this node, in which view
        self._owner: tuple[View, FunctionID | None] = (View(), None)

    def tell(self, i: Tell) -> None:
        machine = self.machine
        message = ModInstance(i.revision, machine.node, machine.incarnation, i.instances, i.epoch, i.full)

        def done(reply: Message | RpcError) -> None:
            if isinstance(reply, ModInstanceReply) and reply.home:
                out = machine.lives.acknowledged(i, True, reply.unwanted, reply.epoch, self.now())
                self.carry_out(out)
            else:
                machine.lives.tell_failed(i, self.now())

        self.rpc.call_soon(i.addr, message, done, CALL_TIMEOUT_S)

    def report(self) -> None:
        """The status has changed."""
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(SOON_S, self._send)

    async def run(self) -> None:
        while True:
            self._send()
            await asyncio.sleep(UPDATE_PERIOD_S)

    def _send(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        view, owner = self._owner
        if view is not self.membership.view:  # finding it takes time for every node of the view
            view = self.membership.view
            owner = partitions.owner(view, "cluster_mgr", self.machine.node)
            self._owner = view, owner
        if owner is not None:
            update = Update(self.machine.status())
            self.rpc.call_soon(self.membership.addr_of(owner), update, lambda reply: None, CALL_TIMEOUT_S)
