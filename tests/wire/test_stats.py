"""stats.py against Google's protobuf: same bytes out, same facts in; any other bytes are Malformed, never worse."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.wire.stats import (
    MAX_MESSAGE_BYTES,
    MAX_STAT_BYTES,
    Malformed,
    Stat,
    StatMessage,
    decode,
    decode_stat,
    encode,
    encode_stat,
)

STAT_FIELDS = (
    ("pod_name", "STRING"),
    ("average_concurrent_requests", "DOUBLE"),
    ("average_proxied_concurrent_requests", "DOUBLE"),
    ("request_count", "DOUBLE"),
    ("proxied_request_count", "DOUBLE"),
    ("process_uptime", "DOUBLE"),
    ("timestamp", "INT64"),
)


def schema() -> dict[str, Any]:
    """The three message classes, from a descriptor built here (there is no generated code to import)."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="stat.proto", package="metrics", syntax="proto3")
    stat = file.message_type.add(name="Stat")
    for number, (name, kind) in enumerate(STAT_FIELDS, 1):
        stat.field.add(
            name=name, number=number, type=getattr(kinds, f"TYPE_{kind}"), label=kinds.LABEL_OPTIONAL
        )
    one = file.message_type.add(name="WireStatMessage")
    for number, name in enumerate(("namespace", "name"), 1):
        one.field.add(name=name, number=number, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    one.field.add(
        name="stat", number=3, type=kinds.TYPE_MESSAGE, type_name=".metrics.Stat", label=kinds.LABEL_OPTIONAL
    )
    file.message_type.add(name="WireStatMessages").field.add(
        name="messages",
        number=1,
        type=kinds.TYPE_MESSAGE,
        type_name=".metrics.WireStatMessage",
        label=kinds.LABEL_REPEATED,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"metrics.{name}"))
        for name in ("Stat", "WireStatMessage", "WireStatMessages")
    }


SCHEMA = schema()
EXAMPLE = bytes.fromhex(
    "0a310a0764656661756c74120b68656c6c6f2d30303030311a190a056163742d3011000000000000f03f21000000000000f03f"
)
texts = st.text(max_size=200)
floats = st.floats(allow_nan=False).map(lambda x: x + 0.0)  # -0.0 is left out as 0.0 is
stats = st.builds(Stat, texts, floats, floats, floats, floats, floats, st.integers(-(2**63), 2**63 - 1))
messages = st.lists(st.builds(StatMessage, texts, texts, stats), max_size=5)


def as_stat(message: Any) -> Stat:
    return Stat(*(getattr(message, name) for name, _ in STAT_FIELDS))


def as_messages(wire: Any) -> list[StatMessage]:
    return [StatMessage(m.namespace, m.name, as_stat(m.stat)) for m in wire.messages if m.HasField("stat")]


def google(messages: list[StatMessage]) -> Any:
    wire = SCHEMA["WireStatMessages"]()
    for namespace, name, stat in messages:
        wire.messages.add(namespace=namespace, name=name, stat=stat._asdict())
    return wire


def test_the_example_of_an_activator_poking() -> None:
    poke = [StatMessage("default", "hello-00001", Stat("act-0", 1.0, request_count=1.0))]
    assert decode(EXAMPLE) == poke
    assert encode(poke) == EXAMPLE


@given(messages)
def test_writes_and_reads_what_google_does(sent: list[StatMessage]) -> None:
    wire = google(sent)
    theirs = wire.SerializeToString(deterministic=True)
    assert encode(sent) == theirs
    assert decode(theirs) == sent


@given(stats)
def test_a_bare_stat(stat: Stat) -> None:
    data = encode_stat(stat)
    assert as_stat(SCHEMA["Stat"].FromString(data)) == stat
    if len(data) <= MAX_STAT_BYTES:
        assert decode_stat(data) == stat


def same(one: list[StatMessage], other: list[StatMessage]) -> bool:
    """Equality with NaN equal to itself: random bytes contain it."""
    return repr(one) == repr(other)


def check_against_google(data: bytes) -> None:
    try:
        expected = as_messages(SCHEMA["WireStatMessages"].FromString(data))
    except DecodeError:
        expected = None
    if expected is None:
        with pytest.raises(Malformed):
            decode(data)
    else:
        assert same(decode(data), expected)


@given(st.binary(max_size=120))
def test_any_bytes_give_messages_or_malformed(data: bytes) -> None:
    check_against_google(data)


@given(messages, st.data())
def test_damaged_messages_are_read_as_google_reads_them(sent: list[StatMessage], draw: st.DataObject) -> None:
    data = bytearray(encode(sent))
    for _ in range(draw.draw(st.integers(1, 3))):
        if data:
            data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    check_against_google(bytes(data))


def field(number: int, kind: int, body: bytes) -> bytes:
    tag = number << 3 | kind
    out = bytearray()
    while tag >= 0x80:
        out.append(tag & 0x7F | 0x80)
        tag >>= 7
    return bytes((*out, tag)) + body


UNKNOWN = {
    "varint": field(15, 0, b"\xff\x01"),
    "fixed64": field(900, 1, bytes(8)),
    "bytes": field(16, 2, b"\x03abc"),
    "fixed32": field(17, 5, bytes(4)),
    "group": field(18, 3, field(1, 3, b"") + field(1, 4, b"") + field(2, 0, b"\x05") + field(18, 4, b"")),
    "known number of another type": field(2, 0, b"\x01"),
}


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_fields_are_skipped(unknown: bytes) -> None:
    stat = unknown + encode_stat(Stat("p", 2.0, timestamp=-5)) + unknown
    assert decode_stat(stat) == Stat("p", 2.0, timestamp=-5)


def test_of_two_values_the_last_counts_and_stats_are_merged() -> None:
    def stat(body: bytes) -> bytes:
        return b"\x1a" + bytes((len(body),)) + body

    body = (
        b"\x0a\x01a\x0a\x01b"
        + stat(encode_stat(Stat("p", 1.0, request_count=3.0)))
        + stat(encode_stat(Stat("", 2.0)))
    )
    assert decode(b"\x0a" + bytes((len(body),)) + body) == [
        StatMessage("b", "", Stat("p", 2.0, request_count=3.0))
    ]


def test_a_message_without_stat_is_skipped() -> None:
    assert decode(b"\x0a\x03\x0a\x01a" + encode([StatMessage("n", "r", Stat())])) == [
        StatMessage("n", "r", Stat())
    ]


MALFORMED = {
    "cut in a length": b"\x0a",
    "cut in a value": b"\x0a\x05ab",
    "an inner field beyond its message": b"\x0a\x02\x0a\x05",
    "field number zero": b"\x02\x00",
    "a wire type that isn't one": b"\x0e",
    "a varint of eleven bytes": b"\x08" + b"\xff" * 10 + b"\x01",
    "a group that ends another": field(3, 3, field(4, 4, b"")),
    "groups without end": field(3, 3, b"") * 5000,
    "no utf-8": b"\x0a\x03\x0a\x01\xff",
    "too long": bytes(MAX_MESSAGE_BYTES + 1),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data)


def test_a_long_answer_to_a_scrape_is_refused() -> None:
    with pytest.raises(Malformed, match=str(MAX_STAT_BYTES)):
        decode_stat(encode_stat(Stat("p" * MAX_STAT_BYTES)))


def test_numbers_that_make_no_sense_pass_through() -> None:
    data = b"\x11" + struct.pack("<d", math.nan)
    assert math.isnan(decode_stat(data).average_concurrent_requests)
