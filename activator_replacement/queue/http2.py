"""HTTP/2 as a queue-proxy treats it: probes answered here, header blocks for the pod's own server, its timeouts.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final, cast

from activator_replacement.exchange import DONE
from activator_replacement.http2.client import Http2Client
from activator_replacement.http2.exchange import Http2Exchange
from activator_replacement.knative import answers as texts
from activator_replacement.knative.http2 import KnativeHttp2Client, KnativeHttp2Exchange
from activator_replacement.queue import answers
from kserve_ext.wire.http2.forward_queue import ToServer, forward_to_server
from kserve_ext.wire.http2.headers import RequestBlock
from kserve_ext.wire.http2.streams import Stream

if TYPE_CHECKING:
    from activator_replacement.queue.dispatcher import QueueDispatcher

_PROBERS: Final = (b"kube-probe/", b"Knative-Activator-Probe", b"Knative-Autoscaling-Probe")


class QueueHttp2Exchange(KnativeHttp2Exchange):
    too_late: ClassVar[str] = answers.TIMED_OUT

    __slots__ = ("_to_server",)

    def __init__(
        self, client: Http2Client, down: Stream, facts: RequestBlock, end: bool, started: float
    ) -> None:
        super().__init__(client, down, facts, end, started)
        self._to_server: ToServer | None = None

    def _made(self) -> ToServer:
        made = self._to_server
        if made is None:
            facts = self.facts
            peer = cast("QueueHttp2Client", self.client).peer
            made = self._to_server = forward_to_server(facts.block, facts.authority, peer, facts.shared)
        return made

    @property
    def proxied(self) -> bool:
        return self._made().proxied

    def forwarded(self) -> bytes:
        return self._made().block


class QueueHttp2Client(KnativeHttp2Client):
    exchange_type: ClassVar[type[Http2Exchange]] = QueueHttp2Exchange

    __slots__ = ()

    @property
    def peer(self) -> bytes:
        """The address of who sends."""
        found = self.transport.get_extra_info("peername")
        return found[0].encode() if isinstance(found, tuple) and found else b"unknown"

    def begun(self, exchange: Http2Exchange) -> None:
        facts = exchange.facts
        prober = facts.user_agent.startswith(_PROBERS)
        if prober or facts.probe == b"probe":
            dispatcher = cast("QueueDispatcher", self.plane.dispatch)
            dispatcher.probed(prober, facts.probe, facts.hash, partial(self._said, exchange))
            return
        Http2Client.begun(self, exchange)

    def _said(self, exchange: Http2Exchange, answer: texts.Answer) -> None:
        if exchange.state != DONE:  # its client may have gone
            exchange.state = DONE
            self.reply(exchange, texts.http1(answer))
