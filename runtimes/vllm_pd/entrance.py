"""The outermost ASGI layer of an instance: its life (loading, ready, draining), request ids and headers.

Decides what is answered while no model is loaded, keeps a response's head back until its first byte of body
is there (the head says how the KV came), and ends a broken event stream with the error event and no [DONE].
Never looks into request bodies; what a request means is vLLM's handlers' and protocols.py's business.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from runtimes.vllm_pd import continuation, given
from runtimes.vllm_pd.given import GivenLeases
from runtimes.vllm_pd.status import Status
from runtimes.vllm_pd.timeline import CURRENT, Timeline, Timelines

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_ALIASES = ("/openai/v1/", "/openai/openai/v1/")
_LIVE_WHILE_LOADING: dict[str, dict[str, Any]] = {"/": {"status": "alive"}, "/v2/health/live": {"live": True}}


class Entrance:
    """Delegates to `app` once there is one."""

    def __init__(self, status: Status, timelines: Timelines) -> None:
        self.app: App | None = None
        self.asleep = False
        self.facts: dict[str, Any] = {}  # served at /galaxy/channel
        self.channels: Callable[[], dict[str, Any]] = dict  # what is served at /galaxy/channels
        self.leases: GivenLeases | None = None  # at /galaxy/lease
        self._status = status
        self._timelines = timelines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket" and self.app is not None:
                await self.app(scope, receive, send)
            return
        path: str = scope["path"]
        for alias in _ALIASES:
            if path.startswith(alias):
                path = "/v1/" + path[len(alias) :]
                scope = {**scope, "path": path, "raw_path": path.encode()}
        request_id = _header(scope, b"x-request-id")
        if path.startswith("/galaxy/"):
            await self._own(path, receive, send)
        elif path == "/ready":
            ready = self._status.phase == "ready" and not self.asleep
            await _answer(send, 200 if ready else 503, {"ready": ready, "phase": self._phase})
        elif self.app is None or self.asleep or self._status.phase in ("importing", "loading"):
            await self._not_yet(path, send, request_id)
        elif scope["method"] == "GET" and not path.startswith("/v1/responses"):
            await self.app(scope, receive, send)
        else:
            await self._serve(self.app, scope, receive, send, request_id)

    @property
    def _phase(self) -> str:
        return "asleep" if self.asleep else self._status.phase

    async def _serve(self, app: App, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        if not request_id:
            request_id = uuid.uuid4().hex
            scope = {**scope, "headers": [*scope["headers"], (b"x-request-id", request_id.encode())]}
        timeline = self._timelines.open(request_id)
        timeline.mark("received", scope["path"])
        if asked := _header(scope, continuation.FIELD):
            try:
                scope, receive, send = await continuation.begin(scope, receive, send, asked)
            except continuation.BadRecord as error:
                await _answer(send, 400, {"error": {"message": str(error), "type": "invalid_request_error"}})
                return
        token = CURRENT.set(timeline)
        try:
            await app(scope, receive, _Response(send, timeline))
        finally:
            CURRENT.reset(token)
            timeline.mark("answered")

    async def _not_yet(self, path: str, send: Send, request_id: str) -> None:
        if path in _LIVE_WHILE_LOADING:
            await _answer(send, 200, _LIVE_WHILE_LOADING[path])
            return
        message = f"the model is not ready: {self._phase}"
        body = {"error": {"message": message, "type": "unavailable", "code": 503}}
        await _answer(send, 503, body, [(b"retry-after", b"1"), (b"x-request-id", request_id.encode())])

    async def _own(self, path: str, receive: Receive, send: Send) -> None:
        if self.leases is not None and path == given.PATH:
            if self._status.phase == "ready":
                await self.leases.hold(receive, send)
            else:
                await _answer(send, 503, {"error": f"the model is not ready: {self._status.phase}"})
        elif self.leases is not None and (lease := given.lease_of(path)):
            ended = self.leases.end(lease)
            await _answer(send, 200 if ended else 404, {"lease": lease, "ended": ended})
        elif path.startswith("/galaxy/requests/"):
            timeline = self._timelines.get(path.removeprefix("/galaxy/requests/"))
            if timeline is None:
                await _answer(send, 404, {"error": "no such request here, or it was forgotten"})
            else:
                await _answer(send, 200, timeline.facts())
        elif path == "/galaxy/status":
            await _answer(send, 200, self._status.facts())
        elif path == "/galaxy/channel":
            await _answer(send, 200, self.facts)
        elif path == "/galaxy/channels":
            await _answer(send, 200, self.channels())
        else:
            await _answer(send, 404, {"error": f"no such path: {path}"})


class _Response:
    """Wraps `send` of one request."""

    __slots__ = ("_broken", "_head", "_send", "_stream", "_timeline")

    def __init__(self, send: Send, timeline: Timeline) -> None:
        self._send = send
        self._timeline = timeline
        self._head: Message | None = None
        self._stream = False
        self._broken = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            self._stream = any(
                name == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in message["headers"]
            )
            return
        if message["type"] == "http.response.body":
            if self._head is not None:
                await self._send_head(self._head)
                self._head = None
            if self._stream:
                body: bytes = message.get("body", b"")
                if body.startswith(b'data: {"error"') or body.startswith(b"event: error"):
                    self._broken = True
                elif self._broken and body.startswith(b"data: [DONE]"):
                    return
        await self._send(message)

    async def _send_head(self, head: Message) -> None:
        headers = [(k, v) for k, v in head["headers"] if k.lower() != b"x-request-id"]
        headers.append((b"x-request-id", self._timeline.id.encode()))
        if self._timeline.transfer:
            headers.append((b"x-kv-transfer", self._timeline.transfer.encode()))
        await self._send({**head, "headers": headers})


def _header(scope: Scope, name: bytes) -> str:
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return ""


async def _answer(
    send: Send, status: int, body: dict[str, Any], headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    data = json.dumps(body).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    head += [(name, value) for name, value in headers or [] if value]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": data})
