"""One HTTP/1.1 request as Knative's activator treats it: its head for the pod, its timeouts, no second try.

What an instance may have begun to work on is never sent again, except a safe method on a kept connection that turned
out to be closed (as Go's transport does). Cut off in mid-response, the client sees a broken connection, never a body
that looks whole; Knative would append its message and end a chunked body properly.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from activator_replacement.exchange import RESPONDING, HttpExchange
from activator_replacement.knative.answers import TIMED_OUT
from activator_replacement.seam import TIMEOUT
from kserve_ext.core.knative.timeouts import Timeouts
from kserve_ext.wire.http1 import RequestHead, ResponseHead
from kserve_ext.wire.knative_head import KnativeHead, forward_to_pod, naming
from kserve_ext.wire.traces import with_parent

if TYPE_CHECKING:
    from activator_replacement.http1 import ClientProtocol
    from activator_replacement.knative.reports.request_log import Record
    from activator_replacement.knative.reports.tracer import Trace
    from activator_replacement.upstream import UpstreamProtocol

_DEFAULT: Final = Timeouts()
_SAFE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))


class KnativeExchange(HttpExchange):
    #: The text of a 504.
    too_late: ClassVar[str] = TIMED_OUT

    __slots__ = ("host", "record", "status", "timeouts", "trace", "written")

    def __init__(self, client: ClientProtocol, facts: RequestHead, head: bytes, started: float) -> None:
        super().__init__(client, facts, head, started)
        #: Set by Dispatch in submit, as timeout_s is.
        self.timeouts = _DEFAULT
        #: Set by Dispatch in submit: the Host that a mesh routes by; b"" = the pod's address.
        self.host = b""
        self.trace: Trace | None = None  # set by Dispatch in submit, where traces are taken
        self.record: Record | None = None  # set by Dispatch in submit, where requests are logged
        self.status = 0  # of the pod's response, once there is one
        self.written = 0.0  # when the client was last written to, as far as a tick has seen

    def forwarded(self) -> bytes:
        host = self.host
        facts: KnativeHead = self.facts  # type: ignore[assignment]
        named = naming(self.revision)
        head = forward_to_pod(facts, self.client.hop, host or self.addr.encode(), host != b"", named)
        return head if self.trace is None else with_parent(head, self.trace.proxy)

    def marks(self, head: ResponseHead) -> bytes:
        self.status = head.status
        return b""

    @property
    def method(self) -> bytes:
        return self.facts.method

    @property
    def version(self) -> str:
        return "1.1" if self.facts.minor else "1.0"

    def repeatable(self, kept: bool) -> bool:
        return kept and self.facts.method in _SAFE

    def broken_off(self, upstream: UpstreamProtocol, reason: str) -> None:
        """What a stream's events mean is the user's: none is added."""
        self.client.abort()

    def check(self, now: float, wrote: bool) -> bool:
        """Called each tick; False: one of its timeouts has passed, and it is over."""
        if wrote:
            self.written = now
        if not self.timeouts.passed(self.started, self.written, now):
            return True
        self.timed_out()
        return False

    def timed_out(self) -> None:
        begun = self.state >= RESPONDING
        self._end(TIMEOUT)
        if begun:
            self.client.abort()
        else:
            self.client.answer(self, 504, self.too_late)
