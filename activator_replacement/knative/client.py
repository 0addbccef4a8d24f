"""The client's side of an activator over HTTP/1.1: probes are answered here, timeouts looked at each tick.

A connection that begins with HTTP/2's preface, or asks for h2c, is handed over to knative/http2.py.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from activator_replacement.exchange import DONE, HttpExchange
from activator_replacement.http1 import ClientProtocol
from activator_replacement.http2.client import Http2Client
from activator_replacement.knative import answers
from activator_replacement.knative.exchange import KnativeExchange
from activator_replacement.knative.http2 import KnativeHttp2Client
from kserve_ext.wire.http1 import Grammar, RequestHead
from kserve_ext.wire.knative_head import KNATIVE, KnativeHead

if TYPE_CHECKING:
    from activator_replacement.plane import Plane


class KnativeClient(ClientProtocol):
    grammar: ClassVar[Grammar] = KNATIVE
    http2_type: ClassVar[type[Http2Client]] = KnativeHttp2Client

    __slots__ = ("_wrote",)

    def __init__(self, plane: Plane) -> None:
        super().__init__(plane)
        self._wrote = False  # since the last tick

    def write(self, data: bytes) -> None:
        self._wrote = True
        exchange = cast("KnativeExchange | None", self.exchange)
        if exchange is not None and exchange.record is not None:
            exchange.record.passed(data)
        self.transport.write(data)

    def new_exchange(self, facts: RequestHead, head: bytes, now: float) -> HttpExchange:
        return KnativeExchange(self, facts, head, now)

    def begun(self, exchange: HttpExchange) -> None:
        head: KnativeHead = exchange.facts  # type: ignore[assignment]
        if head.kubelet or head.probe:
            answer = answers.probe(head.kubelet, head.probe, head.hash, self.plane.unhealthy)
            if answer is not None:
                self._reply(exchange, answer)
                return
        self._wrote = False
        super().begun(exchange)

    def answer(self, exchange: HttpExchange, status: int, reason: str, retry_after_s: float = 0.0) -> None:
        record = cast("KnativeExchange", exchange).record
        if record is not None:
            record.size = len(answers.error(status, reason).body)
        super().answer(exchange, status, reason, retry_after_s)

    def refusal(
        self, status: int, reason: str, retry_after_s: float, request_id: bytes, to_head: bool
    ) -> bytes:
        answer = answers.error(status, reason, retry_after_s)
        return answers.http1(answer, close=self.close_after, to_head=to_head)

    def pipe(self, exchange: HttpExchange) -> None:
        self._wrote = False  # the response begins after the 101
        super().pipe(exchange)

    def check(self, now: float) -> None:
        exchange = self.exchange
        if exchange is not None:
            wrote, self._wrote = self._wrote, False
            if not cast("KnativeExchange", exchange).check(now, wrote):
                return
            self._quiet_s = 0.0  # how long an exchange may be quiet is its revision's to say
        super().check(now)

    def _reply(self, exchange: HttpExchange, answer: answers.Answer) -> None:
        exchange.state = DONE
        if not exchange.body_done or self.plane.draining:
            self.close_after = True
        to_head = exchange.facts.method == b"HEAD"
        self.transport.write(answers.http1(answer, close=self.close_after, to_head=to_head))
        self.exchange_done(exchange)
