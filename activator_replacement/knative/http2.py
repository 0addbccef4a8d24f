"""HTTP/2 as Knative's activator treats it: probes answered here, header blocks for the pod, its timeouts and texts.

The same facts and answers as client.py and exchange.py have for HTTP/1.1; gRPC clients map the plain HTTP status of
an error themselves, as they do with Knative. What an instance may have begun to work on is not sent again, except a
safe method on a kept connection that turned out to be closed.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, cast

from activator_replacement.exchange import DONE, RESPONDING
from activator_replacement.http2.client import Http2Client
from activator_replacement.http2.exchange import Http2Exchange
from activator_replacement.knative import answers
from activator_replacement.seam import TIMEOUT
from kserve_ext.core.knative.timeouts import Timeouts
from kserve_ext.wire.http2.fields import fields
from kserve_ext.wire.http2.forward import forward_to_pod, naming
from kserve_ext.wire.http2.frames import INTERNAL_ERROR
from kserve_ext.wire.http2.headers import RequestBlock, ResponseBlock
from kserve_ext.wire.http2.hpack import literal
from kserve_ext.wire.http2.streams import Stream
from kserve_ext.wire.traces import format_parent

if TYPE_CHECKING:
    from activator_replacement.knative.reports.request_log import Record
    from activator_replacement.knative.reports.tracer import Trace

_DEFAULT: Final = Timeouts()
_SAFE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))
_KUBELET: Final = b"kube-probe/"


class KnativeHttp2Exchange(Http2Exchange):
    too_late: ClassVar[str] = answers.TIMED_OUT

    __slots__ = ("host", "record", "status", "timeouts", "trace", "written")

    def __init__(
        self, client: Http2Client, down: Stream, facts: RequestBlock, end: bool, started: float
    ) -> None:
        super().__init__(client, down, facts, end, started)
        #: Both set by Dispatch in submit, see KnativeExchange.
        self.timeouts = _DEFAULT
        self.host = b""
        self.trace: Trace | None = None  # these two, too, see KnativeExchange
        self.record: Record | None = None
        self.status = 0  # of the pod's response, once there is one
        self.written = 0.0  # when the client was last written to, as far as a tick has seen

    def forwarded(self) -> bytes:
        host = self.host
        named = naming(self.revision)
        block = forward_to_pod(self.facts, self.client.hop, host or self.addr.encode(), bool(host), named)
        return block if self.trace is None else _with_parent(block, format_parent(self.trace.proxy))

    def pass_on(self, payload: bytes, end: bool) -> None:
        if self.record is not None:
            self.record.size += len(payload)
        super().pass_on(payload, end)

    def marked(self, head: ResponseBlock) -> bytes:
        self.status = head.status
        return head.block

    @property
    def method(self) -> bytes:
        return self.facts.method

    @property
    def version(self) -> str:
        return "2.0"

    @property
    def empty(self) -> bool:
        """It has no body."""
        return self.body_done and not self._received

    def repeatable(self, kept: bool) -> bool:
        return kept and self.facts.method in _SAFE

    def check(self, now: float) -> bool:
        """Called each tick; False: one of its timeouts has passed, and it is over."""
        if self.wrote:
            self.wrote = False
            self.written = now
        if not self.timeouts.passed(self.started, self.written, now):
            return True
        self.timed_out()
        return False

    def timed_out(self) -> None:
        begun = self.state >= RESPONDING
        self._end(TIMEOUT)
        if begun:
            self.client.break_off(self, INTERNAL_ERROR)
        else:
            self.client.answer(self, 504, self.too_late)


class KnativeHttp2Client(Http2Client):
    exchange_type: ClassVar[type[Http2Exchange]] = KnativeHttp2Exchange
    repeated: ClassVar[bool] = True
    streams: ClassVar[int] = 250  # as Go's server

    __slots__ = ()

    def begun(self, exchange: Http2Exchange) -> None:
        facts = exchange.facts
        kubelet = facts.kubelet or facts.user_agent.startswith(_KUBELET)
        if kubelet or facts.probe:
            answer = answers.probe(kubelet, facts.probe, facts.hash, self.plane.unhealthy)
            if answer is not None:
                exchange.state = DONE
                self.reply(exchange, answers.http1(answer))
                return
        super().begun(exchange)

    def answer(self, exchange: Http2Exchange, status: int, reason: str, retry_after_s: float = 0.0) -> None:
        record = cast("KnativeHttp2Exchange", exchange).record
        if record is not None:
            record.size = len(answers.error(status, reason).body)
        super().answer(exchange, status, reason, retry_after_s)

    def refusal(self, status: int, reason: str, retry_after_s: float, request_id: bytes) -> bytes:
        return answers.http1(answers.error(status, reason, retry_after_s))

    def check_exchange(self, exchange: Http2Exchange, now: float) -> None:
        if cast("KnativeHttp2Exchange", exchange).check(now):
            super().check_exchange(exchange, now)


def _with_parent(block: bytes, parent: bytes) -> bytes:
    """A checked block with this traceparent instead of the one it had; slow, as only traces may be."""
    kept = [
        literal(name, value, 0x10 if sensitive else 0)
        for name, value, sensitive in fields(block)
        if name != b"traceparent"
    ]
    return b"".join([*kept, literal(b"traceparent", parent)])
