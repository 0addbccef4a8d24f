"""The client's side of a queue-proxy over HTTP/1.1: its probes, and requests for the pod's own server.

A connection that begins with HTTP/2's preface, or asks for h2c, is handed over to queue/http2.py.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, cast

from activator_replacement.exchange import DONE, HELD, HttpExchange
from activator_replacement.http1 import ClientProtocol
from activator_replacement.http2.client import Http2Client
from activator_replacement.knative import answers as texts
from activator_replacement.knative.client import KnativeClient
from activator_replacement.knative.exchange import KnativeExchange
from activator_replacement.queue import answers
from activator_replacement.queue.http2 import QueueHttp2Client
from kserve_ext.wire.http1 import Grammar, RequestHead
from kserve_ext.wire.queue_head import QUEUE, QueueHead, forward_to_server

if TYPE_CHECKING:
    from activator_replacement.queue.dispatcher import QueueDispatcher


class QueueExchange1(KnativeExchange):
    too_late: ClassVar[str] = answers.TIMED_OUT

    __slots__ = ()

    def forwarded(self) -> bytes:
        facts: QueueHead = self.facts  # type: ignore[assignment]
        return forward_to_server(facts, self.client.hop.append_for[2:])

    @property
    def proxied(self) -> bool:
        facts: QueueHead = self.facts  # type: ignore[assignment]
        return facts.proxied


class QueueClient(KnativeClient):
    grammar: ClassVar[Grammar] = QUEUE
    http2_type: ClassVar[type[Http2Client]] = QueueHttp2Client

    __slots__ = ()

    def new_exchange(self, facts: RequestHead, head: bytes, now: float) -> HttpExchange:
        return QueueExchange1(self, facts, head, now)

    def begun(self, exchange: HttpExchange) -> None:
        head: QueueHead = exchange.facts  # type: ignore[assignment]
        if head.prober or head.probe == b"probe":
            dispatcher = cast("QueueDispatcher", self.plane.dispatch)
            dispatcher.probed(head.prober, head.probe, head.hash, partial(self._reply, exchange))
            return
        self._wrote = False
        ClientProtocol.begun(self, exchange)

    def _reply(self, exchange: HttpExchange, answer: texts.Answer) -> None:
        if self.exchange is exchange and exchange.state == HELD:  # its client may have gone
            exchange.state = DONE
            super()._reply(exchange, answer)
