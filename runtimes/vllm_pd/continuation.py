"""Streams that another instance can go on with: the marks that this one writes, and the record that it goes on from.

Dispatch asks for marks in a request's head; a stream for which that is possible then has one behind every event:
`: galaxy EVENT TOKENS [FINISH]`. EVENT counts, TOKENS are those that the engine has put out since the last mark
(`5,6;7`: two outputs, `-`: none), FINISH is the last output's reason. A record is all marks of what the client has.
From it the other instance repeats the engine's outputs one by one before vLLM's own handler, which so comes into the
very state that it had here (text held back, parsers, counts, offsets); the events that it writes meanwhile are those
that the client has, and are left out. Never looks into prompts, and into events only for the time of creation, which
must not change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from kserve_ext.wire import continuation as wire

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

FIELD: Final = wire.FIELD.lower()
_MARKS: Final = wire.MARKS.decode()
_RESUME: Final = wire.RESUME.decode()
_CREATED = re.compile(rb'"created":(\d+)')
_DONE: Final = b": galaxy done\n\n"
_ERROR: Final = b": galaxy error\n\n"


class BadRecord(ValueError):
    """What is to be gone on from can't be read."""


class Finish(NamedTuple):
    reason: str
    stop: int | str | None


class Record(NamedTuple):
    """What the client has of a stream."""

    created: bytes
    events: int = 0
    outputs: tuple[tuple[int, ...], ...] = ()  # the engine's, as token ids
    finish: Finish | None = None

    @property
    def tokens(self) -> list[int]:
        return [token for output in self.outputs for token in output]


class Continuation:
    """One request whose stream may be gone on with; `record` if this instance is the one that does."""

    def __init__(self, chat: bool, record: Record | None = None) -> None:
        self.record = record
        self.possible = False
        self.repeated = 0  # outputs of the record that the engine will put out first
        self.events = 0
        self._roles = int(chat)  # events at the beginning that say who speaks, and tell of no token
        self._asked = 0
        self._outputs: list[str] = []
        self._finish: Finish | None = None

    # --- the engine's side

    def begins(self, possible: bool) -> None:
        """A request to the engine; several of them are one response in an order that nobody can repeat."""
        self._asked += 1
        self.possible = possible and self._asked == 1

    def put_out(self, output: Any) -> None:
        """The engine's next output, about to become events."""
        if self.repeated:
            self.repeated -= 1
        elif self.possible:
            one = output.outputs[0]
            if one.token_ids:
                self._outputs.append(",".join(map(str, one.token_ids)))
            if output.finished:
                self._finish = Finish(one.finish_reason, one.stop_reason)

    # --- the stream's side

    @property
    def left_out(self) -> bool:
        """The client has the event that comes now."""
        return self.record is not None and self.events <= self.record.events

    def mark(self) -> bytes:
        """Behind the event that was counted last."""
        if self.events <= self._roles:
            return b": galaxy %d -\n\n" % self.events
        outputs = ";".join(self._outputs) or "-"
        self._outputs.clear()
        finish = ""
        if self._finish is not None:
            finish = " " + json.dumps(self._finish)
            self._finish = None
        return f": galaxy {self.events} {outputs}{finish}\n\n".encode()


#: The continuation of the request that the running task serves, if Dispatch has asked for marks.
ASKED: ContextVar[Continuation | None] = ContextVar("galaxy_continuation", default=None)


async def begin(scope: Scope, receive: Receive, send: Send, asked: str) -> tuple[Scope, Receive, Send]:
    """For what is served from here on, by a task of its own. `asked`: the field's value. Raises BadRecord."""
    chat = scope["path"].endswith("/chat/completions")
    if asked == _MARKS:
        continuation = Continuation(chat)
    else:
        size = asked.removeprefix(_RESUME)
        body = await _read(receive)
        if size == asked or not size.isdigit() or int(size) > len(body):
            raise BadRecord(f"{wire.FIELD.decode()}: {_MARKS}, or {_RESUME} with the length of the request")
        continuation = Continuation(chat, read_record(body[int(size) :]))
        body = body[: int(size)]
        receive = _Again(body, receive)
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", b"%d" % len(body))]}
    ASKED.set(continuation)
    return scope, receive, _Marked(send, continuation)


def read_record(text: bytes) -> Record:
    """Raises BadRecord."""
    created, *marks = text.split(b"\n")
    events, finish = 0, None
    outputs: list[tuple[int, ...]] = []
    try:
        if not created.isdigit():
            raise ValueError(f"it begins with {created[:20]!r}")
        for mark in marks:
            number, tokens, *rest = mark.split(b" ", 2)
            events = int(number)
            if tokens != b"-":
                outputs += [tuple(map(int, output.split(b","))) for output in tokens.split(b";")]
            if rest:
                finish = Finish(*json.loads(rest[0]))
    except (ValueError, TypeError) as error:
        raise BadRecord(f"the record of what the client has can't be read: {error}") from error
    return Record(created, events, tuple(outputs), finish)


async def _read(receive: Receive) -> bytes:
    body: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise BadRecord("the client went before its request was there")
        body.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(body)


class _Again:
    """`receive` of a request whose body was read before."""

    def __init__(self, body: bytes, rest: Receive) -> None:
        self._body: bytes | None = body
        self._rest = rest

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._rest()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class _Marked:
    """`send` of one response; its head comes with its first byte of body (entrance.py)."""

    __slots__ = ("_begun", "_continuation", "_created", "_head", "_send", "_with")

    def __init__(self, send: Send, continuation: Continuation) -> None:
        self._send = send
        self._continuation = continuation
        self._head: Message | None = None
        self._begun = False
        self._created = b""
        self._with = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            return
        if message["type"] == "http.response.body":
            if self._head is not None:
                await self._begin(self._head, message.get("body", b""))
                self._head = None
            if self._with and message.get("body"):
                body = self._marked(bytes(message["body"]))
                if not body:
                    return
                message = {**message, "body": body}
        await self._send(message)

    async def _begin(self, head: Message, body: bytes) -> None:
        found = _CREATED.search(body)
        self._created = found[1] if found else b"0"
        record = self._continuation.record
        self._with = self._continuation.possible and head["status"] == 200 and _is_stream(head)
        if self._with:
            created = self._created if record is None else record.created
            head = {**head, "headers": [*head["headers"], (FIELD, created)]}
        await self._send(head)

    def _marked(self, body: bytes) -> bytes:
        continuation = self._continuation
        if body.startswith((b'data: {"error"', b"event: error")):
            return body + _ERROR
        if body.startswith(b"data: [DONE]"):
            return body + _DONE
        continuation.events += 1
        if continuation.left_out:
            return b""
        if continuation.record is not None:
            theirs = continuation.record.created
            body = body.replace(b'"created":' + self._created, b'"created":' + theirs, 1)
        return body + continuation.mark()


def _is_stream(head: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in head["headers"]
    )
