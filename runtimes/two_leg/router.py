"""Carries out the course of each request (core/two_leg/course.py): sends legs, reads answers, gives KV back.

One task a request; what ends it early (its client has gone) ends its legs. Releases outlive their request: the KV
they give back takes room on prefill. Logs what was degraded and why; decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from kserve_ext.core.two_leg import bodies
from kserve_ext.core.two_leg.bodies import Asked
from kserve_ext.core.two_leg.course import (
    Cancel,
    Course,
    Decode,
    GiveBack,
    Linger,
    Pass,
    Prefill,
    Refuse,
    Release,
    Step,
    Take,
)
from kserve_ext.core.two_leg.engines import Engines
from runtimes.two_leg import metrics
from runtimes.two_leg.calls import Address, Call, Header, Lost, NotReached, reachable
from runtimes.two_leg.prefills import Leasing
from runtimes.vllm_pd.home_client import Lease, NoPrefill
from runtimes.vllm_pd.timeline import Timeline

log = logging.getLogger(__name__)

RELEASE_S: Final = 10.0
#: How long a leg outlives its client where it is not known yet who holds KV: engines see requests when they see them.
LINGER_S: Final = 0.25
_NOTHING_HANDED: Final = (
    "prefill engine %s keeps no KV for others; start it with --kv-transfer-config and a connector that speaks "
    'kv_transfer_params, for example {"kv_connector": "NixlConnector", "kv_role": "kv_both"}'
)


class Request(NamedTuple):
    """As the client sent it; `headers` without those of the connection."""

    id: str
    method: bytes
    path: bytes  # with its query
    headers: Sequence[Header]
    body: bytes
    legs: Literal["", "completion", "chat"]  # "": one engine answers it as it is


class Settings(NamedTuple):
    pd: bodies.Setting = "auto"
    threshold: float = 256  # tokens
    chars_per_token: float = bodies.CHARS_PER_TOKEN
    prefill_s: float = 60.0
    wait_s: float = 5.0  # for a prefill engine
    required: bool = False
    legs_of_others: bool = False  # another router's come here, with what that one says of transfers


class _Prefilled(NamedTuple):
    addr: str
    handed: bodies.Handed
    failed: str  # what the engine is to blame for
    took: float


class Answer(NamedTuple):
    """Decode's, from its head on: its body is read from `call`."""

    call: Call
    course: Course


@dataclass
class Router:
    decodes: Engines
    leases: Leasing
    settings: Settings = field(default_factory=Settings)
    addresses: dict[str, Address] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._behind: set[asyncio.Task[None]] = set()
        self._logged: set[str] = set()

    def own_bytes(self, body: bytes) -> bytes:
        """What of a body may go to engines."""
        return body if self.settings.legs_of_others else bodies.without_params(body)

    def course(self, request: Request) -> tuple[Course, Asked]:
        asked = Asked({}, 0, "not-generation")
        if request.legs:
            asked = bodies.read(request.body, request.legs == "chat", self.settings.chars_per_token)
        reason = bodies.why_alone(self.settings.pd, self.settings.threshold, asked)
        if request.legs:
            metrics.DECISIONS.labels("local" if reason else "prefill", reason or "long").inc()
        return Course(self.decodes, reason, required=self.settings.required), asked

    async def drain(self) -> None:
        """Until everything that is given back has been."""
        while self._behind:
            await asyncio.wait(self._behind)

    def address(self, url: str) -> Address:
        known = self.addresses.get(url)
        if known is None:
            known = self.addresses[url] = Address.of(url)
            if len(self.addresses) > metrics.MOST_ENGINES:  # those that home leases come and go
                del self.addresses[next(iter(self.addresses))]
        return known

    def behind(self, work: asyncio.Task[None]) -> None:
        self._behind.add(work)
        work.add_done_callback(self._behind.discard)

    def release(self, request: Request, step: Release) -> None:
        self.behind(self._loop.create_task(self._release(request, step)))

    async def _release(self, request: Request, step: Release) -> None:
        call = Call()
        headers = [
            (b"content-type", b"application/json"),
            (b"x-request-id", request.id.encode() + b"-release"),
        ]
        headers += [header for header in request.headers if header[0] == b"authorization"]
        try:
            async with asyncio.timeout(RELEASE_S):
                body = bodies.for_release(step.params)
                await call.begin(self.address(step.addr), b"POST", b"/v1/completions", headers, body)
                status = await call.head()
        except (NotReached, Lost, TimeoutError) as error:
            log.warning(
                "%s: its KV stays at prefill until the lease there runs out: %s can't be told to give it back (%s)",
                request.id,
                step.addr,
                error or f"no answer within {RELEASE_S:g} s",
            )
            metrics.RELEASES.labels("failed").inc()
        else:
            metrics.RELEASES.labels("given-back" if status < 500 else "failed").inc()
        finally:
            call.cancel()

    def log_once(self, text: str, *values: object) -> None:
        said = text % values
        if said not in self._logged:
            if len(self._logged) == metrics.MOST_ENGINES:
                self._logged.clear()
            self._logged.add(said)
            log.warning(said)


class Legs:
    """The legs of one request. `run` raises Refused; cancelled, it ends them."""

    def __init__(self, router: Router, request: Request, timeline: Timeline) -> None:
        self.course, self._asked = router.course(request)
        self._router = router
        self._request = request
        self._timeline = timeline
        self._lease: Lease | None = None
        self._call: Call | None = None
        self._asking: asyncio.Task[_Prefilled] | None = None
        self._now = asyncio.get_running_loop().time

    async def run(self) -> Answer:
        """Until decode's answer begins."""
        if self._request.legs:
            reason = self.course.reason
            self._timeline.mark(
                "decided", f"local: {reason}" if reason else f"prefill: about {self._asked.tokens}"
            )
        steps = deque(self.course.begin(self._now()))
        while steps:
            step = steps.popleft()
            if isinstance(step, Pass):
                assert self._call is not None
                return Answer(self._call, self.course)
            steps.extend(await self._carry_out(step))
        raise AssertionError("a course ends with Pass or Refuse")

    def client_gone(self) -> None:
        self._timeline.mark("client_gone")
        for step in self.course.client_gone(self._call is None or self._call.sent):
            self._at_once(step)
        if self._lease is not None and self._asking is None:
            self._at_once(GiveBack(""))

    async def _linger(self, call: Call | None) -> None:
        await asyncio.sleep(LINGER_S)
        if self._asking is None:
            if call is not None:
                call.cancel()
            return
        if not self._asking.done():
            self._asking.cancel()
        for step in await self._prefilled():
            self._at_once(step)

    def ended(self) -> None:
        """The answer is over, whole or not."""
        self.course.ended()
        self._at_once(Cancel())

    async def _carry_out(self, step: Step) -> list[Step]:
        if isinstance(step, Take):
            return await self._take()
        if isinstance(step, Prefill):
            return await self._prefill(step)
        if isinstance(step, Decode):
            return await self._decode(step)
        self._at_once(step)
        return []

    def _at_once(self, step: Step) -> None:
        if isinstance(step, Refuse):
            raise Refused(step.status, step.reason)
        if isinstance(step, Release):
            self._timeline.mark("kv_released", step.addr)
            self._router.release(self._request, step)
        elif isinstance(step, GiveBack):
            lease, self._lease = self._lease, None
            if lease is not None:
                giving = self._router.leases.release(lease, step.failed)
                self._router.behind(asyncio.get_running_loop().create_task(giving))
        elif isinstance(step, Cancel) and self._call is not None:
            self._call.cancel()
            self._call = None
        elif isinstance(step, Linger):
            call, self._call = self._call, None
            self._router.behind(asyncio.get_running_loop().create_task(self._linger(call)))

    async def _take(self) -> list[Step]:
        settings, leases = self._router.settings, self._router.leases
        asking = asyncio.ensure_future(leases.lease(self._request.id, self._asked.tokens, settings.wait_s))
        try:
            lease = await asyncio.shield(asking)
        except NoPrefill as error:
            log.warning("%s is computed by decode alone: %s", self._request.id, error)
            return self.course.not_taken(error.reason, self._now())
        except asyncio.CancelledError:
            asking.add_done_callback(self._granted_too_late)
            raise
        self._lease = lease
        self._timeline.mark("prefill_leased", lease.instance)
        self._timeline.prefill = {"instance": lease.instance, "addr": lease.addr}
        return self.course.taken(lease.addr)

    def _granted_too_late(self, asked: asyncio.Future[Lease]) -> None:
        if not asked.cancelled() and asked.exception() is None:
            self._lease = asked.result()
            self._at_once(GiveBack(""))

    async def _prefill(self, step: Prefill) -> list[Step]:
        self._timeline.mark("prefill_start")
        self._asking = asyncio.get_running_loop().create_task(self._ask_prefill(step.addr))
        return await self._prefilled()

    async def _ask_prefill(self, addr: str) -> _Prefilled:
        """Goes on for a moment when its client has gone."""
        began, call = self._now(), Call()
        reason, failed, answer = "", "", b""
        try:
            async with asyncio.timeout(self._router.settings.prefill_s):
                await self._send(call, addr, bodies.for_prefill(self._asked), self._leg_headers())
                status = await call.head()
                answer = await call.all()
        except TimeoutError:
            reason, failed = "prefill-timeout", f"no answer within {self._router.settings.prefill_s:g} s"
        except (NotReached, Lost) as error:
            reason, failed = "prefill-failed", str(error)
        except asyncio.CancelledError:
            reason = "client-gone"
        else:
            if status >= 500:
                reason, failed = "prefill-failed", f"answered {status}: {_text(answer)}"
            elif status >= 400:
                reason = "prefill-rejected"  # decode's own words go to the client
        call.cancel()
        handed = bodies.Handed(None, 0, reason) if reason else bodies.handed(answer)
        return _Prefilled(addr, handed, failed, self._now() - began)

    async def _prefilled(self) -> list[Step]:
        assert self._asking is not None
        addr, handed, failed, took = await asyncio.shield(self._asking)
        self._asking = None
        self._timeline.mark("prefill_end", handed.reason)
        metrics.leg("prefill", addr, handed.reason or "handed")
        if handed.params is not None:
            metrics.SECONDS.labels("prefill").observe(took)
            tokens = handed.tokens or self._asked.tokens
            return self.course.prefilled(handed.params, tokens, took * 1000, self._now())
        if handed.reason == "nothing-handed":
            self._router.log_once(_NOTHING_HANDED, addr)
        if handed.reason != "client-gone":
            why = failed or handed.reason
            log.warning("%s is computed by decode alone: prefill engine %s: %s", self._request.id, addr, why)
        return self.course.prefill_failed(handed.reason, failed, self._now())

    async def _decode(self, step: Decode) -> list[Step]:
        call = self._call = Call()
        body = (
            self._request.body if step.params is None else bodies.for_decode(self._request.body, step.params)
        )
        began = self._now()
        self._timeline.mark("decode_start", step.addr)
        try:
            await self._send(call, step.addr, body, self._request.headers)
            status = await call.head()
        except (NotReached, Lost) as error:
            sent = isinstance(error, Lost)
            alive = sent and await reachable(self._router.address(step.addr))
            self._call = None
            self._timeline.mark("decode_failed", str(error))
            metrics.leg("decode", step.addr, "lost" if sent else "unreachable")
            log.warning("%s: decode engine %s: %s", self._request.id, step.addr, error)
            return self.course.lost(sent, alive, self._now())
        if self._request.legs:
            metrics.SECONDS.labels("decode").observe(self._now() - began)
        metrics.leg("decode", step.addr, f"{status // 100}xx")
        self._timeline.mark("decode_answered", str(status))
        return self.course.answered(status, self._now())

    async def _send(self, call: Call, addr: str, body: bytes, headers: Sequence[Header]) -> None:
        request = self._request
        named = [*headers, (b"x-request-id", request.id.encode())]
        await call.begin(self._router.address(addr), request.method, request.path, named, body)

    def _leg_headers(self) -> list[Header]:
        """Prefill's answer is for us, so it comes as it is."""
        return [header for header in self._request.headers if header[0] != b"accept-encoding"]


class Refused(Exception):
    def __init__(self, status: int, reason: str, headers: Mapping[bytes, bytes] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers or {}


def _text(answer: bytes) -> str:
    return " ".join(answer[:200].decode("utf-8", "replace").split())
