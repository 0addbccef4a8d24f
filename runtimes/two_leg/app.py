"""The router as an ASGI application: completions and chat over two legs, everything else to a decode engine as it is.

A client that closes ends its legs. The answer is decode's own, with x-request-id and x-kv-transfer added; a stream
that its engine leaves unfinished ends with an error event and no [DONE], an answer of known length with the
connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from prometheus_client import generate_latest

from kserve_ext.wire.http1 import REQUEST_ID_TEXT
from runtimes.two_leg import metrics
from runtimes.two_leg.calls import Call, Header, Lost, NotReached
from runtimes.two_leg.router import Legs, Refused, Request, Router
from runtimes.vllm_pd.status import Status
from runtimes.vllm_pd.timeline import Timelines

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MOST_BODY: Final = 64 << 20
_LEGS: Final = {b"/v1/completions": "completion", b"/v1/chat/completions": "chat"}
_ALIASES: Final = (b"/openai/v1/", b"/openai/openai/v1/")
#: Of the connection, not of the request or its answer.
_OF_THIS_HOP: Final = frozenset(
    (
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-id",
    )
)
#: Of an engine's answer: of the hop, or our own server's to say.
_NOT_HANDED_ON: Final = (_OF_THIS_HOP - {b"content-length"}) | {b"date", b"server"}


class App:
    def __init__(self, router: Router, status: Status, timelines: Timelines, own_engine: str = "") -> None:
        """`own_engine`: the one whose metrics are ours, too."""
        self._router = router
        self._status = status
        self._timelines = timelines
        self._own_engine = own_engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
            return
        path: str = scope["path"]
        if path.startswith("/galaxy/"):
            await self._own(path, send)
        elif path in ("/ready", "/health"):
            ready = self._status.phase == "ready" and self._router.decodes.any_healthy
            await answer(send, 200 if ready else 503, {"ready": ready, "phase": self._status.phase})
        elif path == "/metrics":
            await self._metrics(send)
        elif self._status.phase in ("importing", "loading"):
            engines = ", ".join(self._router.decodes.all)
            message = f"no decode engine has passed its health check yet ({engines}); see this router's log"
            await refuse(send, 503, message, [(b"retry-after", b"1")])
        else:
            await self._request(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            request = await self._read(scope, receive)
        except Refused as refused:
            await refuse(send, refused.status, refused.reason, [(b"connection", b"close")])
            return
        if request is None:
            return
        timeline = self._timelines.open(request.id)
        timeline.mark("received", request.path.decode("latin-1"))
        legs = Legs(self._router, request, timeline)
        serving = asyncio.ensure_future(_serve(legs, request, send))
        watching = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((serving, watching), return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                outcome = serving.result()
            else:
                outcome = "client-gone"
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving
        finally:
            watching.cancel()
            serving.cancel()
        timeline.transfer = legs.course.transfer if request.legs else ""
        timeline.mark("answered", outcome)
        metrics.REQUESTS.labels(outcome).inc()

    async def _read(self, scope: Scope, receive: Receive) -> Request | None:
        """None: the client went before its body was here."""
        path: bytes = scope[
            "raw_path"
        ]  # never the decoded one: what it may hold would end our request's first line
        for alias in _ALIASES:
            if path.startswith(alias):
                path = b"/v1/" + path[len(alias) :]
        legs: Any = _LEGS.get(path, "") if scope["method"] == "POST" else ""
        if scope["query_string"]:
            path += b"?" + scope["query_string"]
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MOST_BODY:
                raise Refused(413, f"the body is longer than {MOST_BODY >> 20} MiB")
        headers = [header for header in scope["headers"] if header[0] not in _OF_THIS_HOP]
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        name = given.decode() if REQUEST_ID_TEXT.fullmatch(given) else uuid.uuid4().hex
        sent = self._router.own_bytes(bytes(body))
        return Request(name, scope["method"].encode(), path, headers, sent, legs)

    async def _own(self, path: str, send: Send) -> None:
        if path.startswith("/galaxy/requests/"):
            timeline = self._timelines.get(path.removeprefix("/galaxy/requests/"))
            if timeline is None:
                await answer(send, 404, {"error": "no such request here, or it was forgotten"})
            else:
                await answer(send, 200, timeline.facts())
        elif path == "/galaxy/status":
            await answer(send, 200, self._status.facts())
        else:
            await answer(send, 404, {"error": f"no such path: {path}"})

    async def _metrics(self, send: Send) -> None:
        for addr, engine in self._router.decodes.all.items():
            metrics.IN_FLIGHT.labels(addr).set(engine.legs)
        text = generate_latest()
        if self._own_engine:
            with contextlib.suppress(NotReached, Lost, TimeoutError):
                text = await get(self._router, self._own_engine, b"/metrics") + text
        headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
        headers.append((b"content-length", str(len(text)).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})


async def _serve(legs: Legs, request: Request, send: Send) -> str:
    """How it ended, in a word."""
    try:
        got = await legs.run()
    except Refused as refused:
        more = [*_added(request, legs), (b"retry-after", b"1")]
        await refuse(send, refused.status, refused.reason, more)
        return "refused"
    except asyncio.CancelledError:
        legs.client_gone()
        raise
    call = got.call
    events = any(k == b"content-type" and v.startswith(b"text/event-stream") for k, v in call.headers)
    try:
        headers = [header for header in call.headers if header[0] not in _NOT_HANDED_ON]
        headers += _added(request, legs)
        await send({"type": "http.response.start", "status": call.status, "headers": headers})
        try:
            async for piece in call.body():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Lost as lost:
            if not events:
                return "broken"  # the server ends the connection of an answer that is not whole
            said = {"error": {"message": f"the engine {lost}", "type": "engine_lost", "code": 502}}
            last = b"data: " + json.dumps(said).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": last})
            return "broken"
        await send({"type": "http.response.body", "body": b""})
        return "answered" if call.status < 400 else "rejected"
    except asyncio.CancelledError:
        legs.client_gone()
        raise
    finally:
        legs.ended()


def _added(request: Request, legs: Legs) -> list[Header]:
    added = [(b"x-request-id", request.id.encode())]
    if request.legs:
        added.append((b"x-kv-transfer", legs.course.transfer.encode()))
    return added


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def get(router: Router, addr: str, path: bytes, timeout_s: float = 2.0) -> bytes:
    """What an engine answers with 200. Raises NotReached, Lost or TimeoutError."""
    call = Call()
    try:
        async with asyncio.timeout(timeout_s):
            await call.begin(router.address(addr), b"GET", path, (), b"")
            status = await call.head()
            body = await call.all()
    finally:
        call.cancel()
    if status != 200:
        raise Lost(f"answered {status} to {path.decode()}")
    return body


async def answer(send: Send, status: int, body: dict[str, Any], headers: list[Header] | None = None) -> None:
    data = json.dumps(body).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head + (headers or [])})
    await send({"type": "http.response.body", "body": data})


async def refuse(send: Send, status: int, message: str, headers: list[Header] | None = None) -> None:
    kind = "unavailable" if status >= 500 else "invalid_request_error"
    await answer(send, status, {"error": {"message": message, "type": kind, "code": status}}, headers)
