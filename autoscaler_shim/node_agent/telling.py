"""Tells activators what serves and what no longer does (ModInstance), at once, and again where nobody answers.

Only the latest news of a slot is repeated to an activator, and only for a while: one that can't be reached is gone,
or learns of the pod from its Endpoints.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from kserve_ext.core.facts import Instance
from kserve_ext.core.ids import InstanceID, NodeID, RevisionKey
from kserve_ext.core.standby.effects import News
from kserve_ext.rpc import Rpc, RpcError
from kserve_ext.wire.messages import Message, ModInstance

log = logging.getLogger(__name__)

ANSWER_S: Final = 1.0
#: Waits before it is told again.
AGAIN_S: Final = (0.05, 0.2, 1.0, 2.0, 5.0)


class Telling:
    def __init__(self, rpc: Rpc, node: NodeID, incarnation: int) -> None:
        self._rpc = rpc
        self._node = node
        self._incarnation = incarnation
        self._loop = asyncio.get_running_loop()
        #: The number of the latest news by activator, revision and instance, while it isn't acknowledged. That a pod
        #: serves another revision now doesn't tell whoever sends it the former's requests that this has left.
        self._latest: dict[tuple[str, RevisionKey, InstanceID], int] = {}
        self._number = 0
        self.told = self.lost = 0

    def tell(self, news: News) -> None:
        instance = Instance(
            news.instance,
            news.revision,
            self._node,
            "ready" if news.serves else "gone",
            news.addr,
            generation=news.incarnation,
            reason=news.reason,
        )
        message = ModInstance(news.revision, self._node, self._incarnation, (instance,), 0)
        for addr in news.to:
            self._number += 1
            self._latest[addr, news.revision, news.instance] = self._number
            self._send(addr, news.instance, message, self._number, 0)

    def _send(self, addr: str, instance: InstanceID, message: ModInstance, number: int, tried: int) -> None:
        key = addr, message.revision, instance
        if self._latest.get(key) != number:
            return

        def done(reply: Message | RpcError) -> None:
            if self._latest.get(key) != number:
                return
            if not isinstance(reply, RpcError):
                self.told += 1
                del self._latest[key]
            elif tried < len(AGAIN_S):
                self._loop.call_later(AGAIN_S[tried], self._send, addr, instance, message, number, tried + 1)
            else:
                self.lost += 1
                del self._latest[key]
                log.warning(
                    "activator %s was not told that %s is %s (%s): it goes by its Endpoints",
                    addr,
                    instance,
                    message.instances[0].state,
                    reply,
                )

        self._rpc.call_soon(addr, message, done, ANSWER_S)
