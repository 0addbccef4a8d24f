"""What is fuzzed: every parser of bytes that a stranger may send, with the property that must hold for any bytes.

A target takes bytes and returns; the only exceptions it lets pass are those that it does not know of, and these are
findings. `python -m tests.fuzz` drives them by coverage (atheris), test_targets.py by seeds and random bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

import httptools
import msgspec

from kserve_ext.api import annotations as galaxy
from kserve_ext.api import durations, quantities
from kserve_ext.api.go_template import TemplateError
from kserve_ext.api.knative import autoscaling, request_log
from kserve_ext.api.knative import config as knative_config
from kserve_ext.api.knative.autoscaler_config import AutoscalerConfig
from kserve_ext.api.knative.observability import observability
from kserve_ext.api.kserve import templates
from kserve_ext.api.kserve.resources import Meta
from kserve_ext.api.problems import Findings
from kserve_ext.wire import frames, http1, http1_body, http1_forward, knative_head, messages, stats
from kserve_ext.wire.http1_absolute import origin_form
from kserve_ext.wire.http2 import fields, headers, hpack
from kserve_ext.wire.http2.frames import PREFACE, Violation
from kserve_ext.wire.http2.streams import Stream
from tests.wire.http2.support import Recorder
from tests.wire.test_http1 import agree

HOP: Final = http1_forward.Hop("10.0.0.1")


def said(reason: str) -> None:
    """A refusal has to say why."""
    assert reason


def http1_requests(data: bytes) -> None:
    """What we accept, llhttp and h11 accept and frame alike; what is sent on is accepted again."""
    with contextlib.suppress(httptools.HttpParserUpgrade):
        agree(data)
    size = data.find(b"\r\n\r\n") + 4
    if size < 4:
        return
    for scan in (http1.scan_request, knative_head.scan_knative):
        try:
            head = scan(data, size)
        except http1.Malformed as malformed:
            said(malformed.reason)
            continue
        if isinstance(head, knative_head.KnativeHead):
            sent = knative_head.forward_to_pod(head, HOP, b"10.0.0.2:8012", False, b"")
        else:
            sent = http1_forward.forward_request(head, HOP, b"id")
        again = scan(sent, len(sent))
        assert (again.method, again.length) == (head.method, head.length)


def http1_absolute(data: bytes) -> None:
    """A head in absolute form becomes one head, which is held to all that others are."""
    size = data.find(b"\r\n\r\n") + 4
    made = origin_form(data[:size]) if size >= 4 else None
    if made is not None:
        assert made.find(b"\r\n\r\n") + 4 == len(made)
        assert origin_form(made) is None
        http1_requests(made + data[size:])


def http1_responses(data: bytes) -> None:
    size = data.find(b"\r\n\r\n") + 4
    if size < 4:
        return
    for to_head in (False, True):
        try:
            head = http1.scan_response(data, size, to_head)
        except http1.Malformed as malformed:
            said(malformed.reason)
            continue
        sent = http1_forward.forward_response(head, b"")
        again = http1.scan_response(sent, len(sent), to_head)
        assert (again.status, again.length) == (head.status, head.length)


def http1_chunks(data: bytes) -> None:
    """Whole, and byte by byte: the same end or the same refusal."""

    def walk(pieces: list[bytes]) -> int | None:
        walker, total = http1_body.ChunkWalker(), 0
        try:
            for piece in pieces:
                end = walker.feed(piece)
                if end >= 0:
                    return total + end
                total += len(piece)
        except http1.Malformed:
            return None
        return -1

    assert walk([data]) == walk([data[k : k + 1] for k in range(len(data))])


class Blocks(Recorder):
    """Writes blocks down as they came: not every value that HTTP allows is UTF-8."""

    def opened(self, stream: Stream, block: bytes, end: bool) -> None:
        self.streams[stream.id] = stream
        self.log.append(("opened", stream.id, block, end))

    def headers(self, stream: Stream, block: bytes, end: bool) -> None:
        self.log.append(("headers", stream.id, block, end))


def http2_connection(data: bytes) -> None:
    """Any bytes end in events or in a Violation, whole or in pieces, and never leave a stream without its end."""
    seen = []
    for pieces in ([data], [data[k : k + 7] for k in range(0, len(data), 7)]):
        peer = Blocks()
        try:
            for piece in (PREFACE, *pieces):
                peer.connection.receive(piece, 0.0)
            seen.append((peer.log, peer.bodies, 0))
        except Violation as violation:
            seen.append((peer.log, peer.bodies, violation.code))
    assert seen[0] == seen[1]


def http2_blocks(data: bytes) -> None:
    """A block that stands alone says the same to our walk and to our decoder."""
    for scan in (headers.scan_request, headers.scan_response, headers.check_trailers):
        try:
            scan(data)
        except Violation as violation:
            said(str(violation))
        except http1.Malformed as malformed:
            said(malformed.reason)
    try:
        fields.walk(data)
    except (Violation, http1.Malformed):
        return
    decoded = hpack.Decoder(1 << 20).decode(data)
    assert [(f.name, f.value) for f in fields.fields(data)] == [(f.name, f.value) for f in decoded]


def statistics(data: bytes) -> None:
    try:
        found = stats.decode(data)
    except stats.Malformed as malformed:
        said(str(malformed))
        return
    again = stats.decode(stats.encode(found))
    assert repr(again) == repr(found)  # repr: NaN is not equal to itself


def rpc_frames(data: bytes) -> None:
    """In one piece and in many: the same frames; a body that is none of its method's messages is refused."""

    def read(pieces: list[bytes]) -> list[frames.Frame] | None:
        reader, found = frames.FrameReader(), []
        try:
            for piece in pieces:
                found += reader.feed(piece)
        except frames.Malformed:
            return None
        return found

    whole = read([data])
    assert whole == read([data[k : k + 5] for k in range(0, len(data), 5)])
    for kind in {kind for pair in messages.METHODS.values() for kind in pair}:
        try:
            message: Any = msgspec.msgpack.decode(data, type=kind)
        except messages.UNREADABLE:
            continue
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=kind) == message


def texts(data: bytes) -> None:
    """Values of annotations and ConfigMaps: a value, or a problem with a remedy."""
    text = data.decode("utf-8", "replace")
    for read in (durations.seconds, quantities.parse):
        try:
            read(text)
        except ValueError as error:
            said(str(error))
    try:
        templates.expand(text, Meta("a", "b", {}, {}))
    except templates.TemplateError as error:
        said(str(error))
    try:
        request_log.line(text)
    except TemplateError as error:
        said(str(error))
    key, _, value = text.partition("=")
    for findings, read_map in (
        (Findings(), lambda f: galaxy.read({f"kserve-galaxy.io/{key}": value}, f)),
        (
            Findings(),
            lambda f: autoscaling.read({f"autoscaling.knative.dev/{key}": value}, f, AutoscalerConfig()),
        ),
        (Findings(), lambda f: knative_config.autoscaler({key: value}, f)),
        (Findings(), lambda f: knative_config.network({key: value}, f)),
        (Findings(), lambda f: knative_config.log_level("activator")({key: value}, f)),
        (Findings(), lambda f: observability({key: value}, f)),
    ):
        read_map(findings)
        assert all(problem.remedy for problem in findings.problems)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__.replace("_", "-"): target
    for target in (
        http1_requests,
        http1_absolute,
        http1_responses,
        http1_chunks,
        http2_connection,
        http2_blocks,
        statistics,
        rpc_frames,
        texts,
    )
}

#: A few whole inputs each, so that neither fuzzer begins with nothing.
SEEDS: Final[dict[str, tuple[bytes, ...]]] = {
    "http1-requests": (
        b"POST /v1/x HTTP/1.1\r\nHost: a.b\r\nContent-Length: 2\r\n\r\n{}",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nForwarded: for=b\r\n\r\n",
    ),
    "http1-absolute": (
        b"GET http://a.b:80/c?d HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\ny",
        b"OPTIONS https://[::1] HTTP/1.0\r\nA: b\r\n\r\n",
    ),
    "http1-responses": (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.0 404\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ),
    "http1-chunks": (b"5\r\nhello\r\n0\r\n\r\n", b"a;name=value\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n"),
    "http2-connection": (
        b"\0\0\0\x04\0\0\0\0\0" + b"\0\0\x0d\x01\x05\0\0\0\x01\x82\x84\x86\x41\x08example1",
        b"\0\0\0\x04\0\0\0\0\0" + b"\0\0\x08\x06\0\0\0\0\0pingping" + b"\0\0\x04\x08\0\0\0\0\0\0\0\x10\0",
    ),
    "http2-blocks": (b"\x20\x82\x84\x86\x41\x01a", b"\x88\x5f\x10application/grpc", b"\x00\x01a\x01b"),
    "statistics": (
        stats.encode([stats.StatMessage("default", "hello-00001", stats.Stat("act-0", 1.0, 0.0, 1.0))]),
    ),
    "rpc-frames": (msgspec.msgpack.encode(messages.Describe("status", "x")),),
    "texts": (
        b"1m30s",
        b"500m",
        b"{{.Name}}-$(PORT)",
        b"target=70.5",
        b"pd-ratio=1:4..2:1",
        b'{{if eq .Response.Code 200}}{{js (printf "%q" .Request.URL) | len}}{{- else -}}{{end}}',
        b"tracing-endpoint=http://c:4317",
        b'zap-logger-config={"level": "info"}',
    ),
}
