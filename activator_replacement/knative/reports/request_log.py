"""A line on stdout for each request that has ended, as the template in config-observability says.

Switched off, none of this runs: a request that begins while it is on gets a record, which hears of what passes. A
line is written when its request's answer is out, all of one turn of the loop together. As in Knative, probes are not
logged: an activator answers them before anything else. In Knative: cmd/activator/request_log.go,
pkg/http/request_log.go.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from activator_replacement.knative.exchange import KnativeExchange
from activator_replacement.knative.http2 import KnativeHttp2Exchange
from kserve_ext.api.knative.request_log import Entry, Revision, canonical, line
from kserve_ext.api.knative.revision import Activated
from kserve_ext.wire.http1 import CHUNKED
from kserve_ext.wire.http1_payload import Payload
from kserve_ext.wire.http2.fields import fields

if TYPE_CHECKING:
    from activator_replacement.knative.dispatcher import ActivatorExchange

_HEAD_END: Final = b"\r\n\r\n"
Field = tuple[bytes, bytes]


class Request(NamedTuple):
    """What a line says of the request; read off before the exchange forgets it."""

    method: bytes
    uri: bytes
    host: bytes
    major: int
    minor: int
    length: int  # -1: not declared
    remote: str
    fields: list[Field]


class RequestLog:
    def __init__(self, template: str) -> None:
        self._line = line(template)
        self._loop = asyncio.get_running_loop()
        self._ended: list[tuple[Record, int, float]] = []

    def begin(self, exchange: ActivatorExchange, facts: Activated) -> Record:
        request = _looked_at(exchange)
        return Record(
            self, request, Revision(facts.namespace, facts.name, facts.service, facts.configuration)
        )

    def ended(self, record: Record, status: int, seconds: float) -> None:
        """Its answer is out by the end of this turn of the loop."""
        if not self._ended:
            self._loop.call_soon(self._flush)
        self._ended.append((record, status, seconds))

    def _flush(self) -> None:
        ended, self._ended = self._ended, []
        sys.stdout.write("".join(self._text(*one) for one in ended))
        sys.stdout.flush()

    def _text(self, record: Record, status: int, seconds: float) -> str:
        entry = record.entry(status, seconds)
        try:
            return self._line(entry)
        except Exception:  # such as text compared with a number: found out by a request only
            return (
                f"Invalid request log template: method: {entry.method}, response code: {entry.code}, "
                f"latency: {entry.latency_s}, url: {entry.uri}\n"
            )


class Record:
    """One request's."""

    __slots__ = ("_head_passed", "_log", "_payload", "_request", "_revision", "_switched", "size")

    def __init__(self, log: RequestLog, request: Request, revision: Revision) -> None:
        self.size = 0  # of the answer's body
        self._log = log
        self._request = request
        self._revision = revision
        self._head_passed = False
        self._switched = False  # to another protocol, whose bytes are no body, as Knative has it
        self._payload: Payload | None = None

    def ended(self, exchange: ActivatorExchange, status: int, seconds: float) -> None:
        """`status` 0: its client was gone before an answer. Then it is what Knative would have answered."""
        self._log.ended(self, status or (502 if exchange.attempts else 500), seconds)

    def passed(self, data: bytes) -> None:
        """Over HTTP/1.1: a head, with what is there of its body, or more of that."""
        if self._switched:
            return
        if not self._head_passed:
            if data[9:10] == b"1":  # informational
                self._switched = data[9:12] == b"101"
                return
            self._head_passed = True
            end = data.find(_HEAD_END) + len(_HEAD_END)
            if b"\r\ntransfer-encoding:" in data[:end].lower():
                self._payload = Payload()
            data = data[end:]
        self.size += len(data) if self._payload is None else self._payload.count(data)

    def entry(self, status: int, seconds: float) -> Entry:
        request = self._request
        headers: dict[str, list[str]] = {}
        for name, value in request.fields:
            headers.setdefault(canonical(_text(name)), []).append(_text(value))
        return Entry(
            _text(request.method),
            _text(request.uri),
            _text(request.host),
            request.major,
            request.minor,
            request.length,
            request.remote,
            headers,
            status,
            self.size,
            seconds,
            self._revision,
        )


def _looked_at(exchange: ActivatorExchange) -> Request:
    given: object = exchange
    if isinstance(given, KnativeHttp2Exchange):
        return _of_stream(given)
    assert isinstance(given, KnativeExchange)
    return _of_head(given)


def _of_stream(exchange: KnativeHttp2Exchange) -> Request:
    block = exchange.facts
    found = [(name, value) for name, value, _ in fields(block.block) if not name.startswith(b":")]
    length = 0 if exchange.empty else block.length
    remote = _remote(exchange.client.transport)
    return Request(block.method, block.path, block.authority, 2, 0, length, remote, found)


def _of_head(exchange: KnativeExchange) -> Request:
    head, facts = exchange.head, exchange.facts
    first, *lines = head[: -len(_HEAD_END)].split(b"\r\n")
    split = (line.partition(b":") for line in lines)
    found = [(name, value.strip(b" \t")) for name, _, value in split if name.lower() != b"host"]
    length = -1 if facts.length == CHUNKED else facts.length
    remote = _remote(exchange.client.transport)
    return Request(facts.method, first.split(b" ")[1], facts.host, 1, facts.minor, length, remote, found)


def _remote(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return ""
    return f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
