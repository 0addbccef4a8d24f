"""Strings, integers and tables: whatever hpack encodes is decoded alike; what no encoder writes is refused."""

from __future__ import annotations

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.wire.http2.frames import COMPRESSION_ERROR, Violation
from kserve_ext.wire.http2.hpack import (
    STATIC,
    Decoder,
    huffman_decode,
    huffman_value,
    integer,
    literal,
    string,
)

huffman = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
NAMES = st.sampled_from(["x-a", "x-b", "accept", "content-type", ":path", "cookie", "x-" + "n" * 200])
FIELDS = st.lists(st.tuples(NAMES, st.text("abc/ 019{}", max_size=300), st.booleans()), max_size=12)


@given(st.binary(max_size=300))
def test_huffman(text: bytes) -> None:
    coded = huffman.encode(text)
    assert huffman_decode(coded) == text
    controls = {*range(32), 127} - {9}
    assert huffman_value(coded) == (-1 if set(text) & controls else len(text))


@given(st.binary(max_size=12))
def test_what_is_decoded_has_that_code(coded: bytes) -> None:
    """There is one code for each string, so no two hops can read it differently."""
    try:
        text = huffman_decode(coded)
    except Violation:
        return
    assert huffman.encode(text) == coded


@pytest.mark.parametrize("coded", [b"\xff", b"\xff\xff\xff\xff", b"\x00\xff\xff", b"\x1f\xff", b"\x1e"])
def test_bad_padding_and_end_of_string(coded: bytes) -> None:
    with pytest.raises(Violation) as raised:
        huffman_decode(coded)
    assert raised.value.code == COMPRESSION_ERROR
    assert huffman_value(coded) == -1


def test_the_static_table_is_that_of_the_rfc() -> None:
    assert STATIC[1:] == list(hpack.table.HeaderTable.STATIC_TABLE)


@given(st.integers(0, 2**28), st.sampled_from([0x0F, 0x1F, 0x3F, 0x7F]))
def test_integers(value: int, mask: int) -> None:
    coded = bytes(hpack.hpack.encode_integer(value, mask.bit_length()))
    assert integer(coded + b"rest", 0, mask) == (value, len(coded))


def test_an_integer_without_end_is_refused() -> None:
    with pytest.raises(Violation):
        integer(b"\x7f" + b"\xff" * 9 + b"\x01", 0, 0x7F)


@given(st.binary(max_size=40_000))
@settings(max_examples=30)
def test_literals(value: bytes) -> None:
    block = literal(b"x-name", value)
    assert string(block, 1) == (b"x-name", 8)
    assert string(block, 8) == (value, len(block))
    assert hpack.Decoder(max_header_list_size=1 << 20).decode(block, raw=True) == [(b"x-name", value)]


@given(st.lists(st.tuples(FIELDS, st.sampled_from([None, None, 0, 100, 4096])), max_size=8))
def test_blocks_with_a_table(blocks: list[tuple[list[tuple[str, str, bool]], int | None]]) -> None:
    encoder = hpack.Encoder()
    decoder = Decoder(1 << 20)
    for fields, table in blocks:
        if table is not None:
            encoder.header_table_size = table
        block = encoder.encode([hpack.HeaderTuple(name, value) for name, value, _ in fields])
        found = decoder.decode(block)
        assert [(f.name, f.value) for f in found] == [(n.encode(), v.encode()) for n, v, _ in fields]


@given(FIELDS)
def test_what_may_not_be_kept_stays_marked(fields: list[tuple[str, str, bool]]) -> None:
    encoder = hpack.Encoder()
    block = encoder.encode(
        [
            hpack.NeverIndexedHeaderTuple(name, value) if never else hpack.HeaderTuple(name, value)
            for name, value, never in fields
        ]
    )
    found = Decoder(1 << 20).decode(block)
    again = b"".join(literal(f.name, f.value, 0x10 if f.never_indexed else 0) for f in found)
    for before, after, (_, _, never) in zip(
        found, hpack.Decoder().decode(again, raw=True), fields, strict=True
    ):
        assert (before.name, before.value) == tuple(after)
        assert before.never_indexed == isinstance(after, hpack.NeverIndexedHeaderTuple)
        assert never >= before.never_indexed  # an indexed field has no such mark


@given(st.binary(max_size=60))
def test_any_bytes_are_read_as_hpack_reads_them_or_refused(block: bytes) -> None:
    try:
        found = Decoder(65_536).decode(block)
    except Violation:
        return
    oracle = hpack.Decoder(max_header_list_size=1 << 20)
    assert [(f.name, f.value) for f in found] == oracle.decode(block, raw=True)


@pytest.mark.parametrize(
    ("block", "table"),
    [
        (b"\x80", 4096),  # entry 0
        (b"\xff\x00", 4096),  # an entry that is not there
        (b"\x82\x20", 4096),  # a table size after a field
        (b"\x3f\xe2\x1f", 4096),  # more than was offered
        (b"\x21", 0),  # likewise, after the peer knew
        (b"\x00\x05abc", 4096),  # cut off
        (b"\x40", 4096),
    ],
)
def test_blocks_that_are_none(block: bytes, table: int) -> None:
    with pytest.raises(Violation):
        Decoder(65_536).decode(block, table)


def test_a_short_block_that_names_a_long_entry_often_is_refused() -> None:
    decoder = Decoder(65_536)
    decoder.decode(b"\x40\x01x" + b"\x7f\xa1\x1e" + b"v" * 4000)
    with pytest.raises(Violation, match="65536"):
        decoder.decode(b"\xbe" * 100)
