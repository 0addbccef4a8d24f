"""Fields of header blocks that stand alone: where each begins and ends, and which the relay looks at; all checked.

A block is walked, not decoded: static indexes and literals are looked up as the bytes they came in, so that a field
seen before (in plain or Huffman-coded form: there is one of each) costs one look in a table that forgets. Every name
and value is checked once: what would end a connection that others share, or be read otherwise by the next hop
(RFC 9113 8.2, 8.3), is never passed on. The size of the list is bounded too (name, value and 32 for each field, as
in SETTINGS): one byte of a block may stand for 60.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

import re
from typing import Final

from kserve_ext.wire.http1 import HOST_PORT, Malformed
from kserve_ext.wire.http2.frames import COMPRESSION_ERROR, Violation
from kserve_ext.wire.http2.hpack import (
    STATIC,
    HeaderField,
    huffman_decode,
    huffman_value,
    integer,
    string,
)

PLAIN: Final = 0
METHOD: Final = 1
SCHEME: Final = 2
PATH: Final = 3
AUTHORITY: Final = 4
STATUS: Final = 5
HOST: Final = 6
LENGTH: Final = 7
NAMESPACE: Final = 8
REVISION: Final = 9
REQUEST_ID: Final = 10
FORWARDED_FOR: Final = 11
FORWARDED: Final = 12
FORWARDED_PROTO: Final = 13
HOP: Final = 14  # ends at this hop
PROBE: Final = 15
HASH: Final = 16
KUBELET: Final = 17
USER_AGENT: Final = 18
ORIGINAL_HOST: Final = 19
COLD: Final = 20
NOT_KEPT: Final = (
    21  # says of the field that follows that no hop may keep it, or that it was never seen before
)
CONTENT_TYPE: Final = 22  # of interest in responses, as what follows
CONTENT_CODING: Final = 23
LAST_PSEUDO: Final = STATUS

_KINDS: Final = {
    b":method": METHOD,
    b":scheme": SCHEME,
    b":path": PATH,
    b":authority": AUTHORITY,
    b":status": STATUS,
    b"host": HOST,
    b"content-length": LENGTH,
    b"knative-serving-namespace": NAMESPACE,
    b"knative-serving-revision": REVISION,
    b"x-request-id": REQUEST_ID,
    b"x-forwarded-for": FORWARDED_FOR,
    b"forwarded": FORWARDED,
    b"x-forwarded-proto": FORWARDED_PROTO,
    b"k-proxy-request": HOP,
    b"proxy-authorization": HOP,
    b"x-galaxy-continuation": HOP,
    b"k-network-probe": PROBE,
    b"k-network-hash": HASH,
    b"k-kubelet-probe": KUBELET,
    b"user-agent": USER_AGENT,
    b"k-original-host": ORIGINAL_HOST,
    b"x-cold-start": COLD,
    b"content-type": CONTENT_TYPE,
    b"content-encoding": CONTENT_CODING,
}
_HOP = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
_NAME = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"(?![\t ])[\t -~\x80-\xff]*(?<![\t ])")
_SPELLED: Final = (0x00, 0x40, 0x10)  # first bytes of literals that spell their names
_GRAMMARS: Final = {
    METHOD: re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}"),
    PATH: re.compile(rb"/[!-~]*|\*"),
    AUTHORITY: HOST_PORT,
}
_CACHED_BYTES: Final = 256  # longer fields, and those that no hop may keep, are looked at anew
_CACHED: Final = 8192
_NAME_BYTES: Final = 64
_FIELD_BYTES: Final = 32  # that each field counts beside its name and value, RFC 9113 6.5.2
LIST_BYTES: Final = 1 << 20
#: No byte of a block stands for more of its list.
MOST_PER_BYTE: Final = _FIELD_BYTES + max(len(name) + len(value) for name, value in STATIC)

#: (kind, value, size in the list) of a field by its bytes in a block; of values only those that the relay looks at.
_known: dict[bytes, tuple[int, bytes, int]] = {}
#: (name, kind) by the first bytes of a literal that spells its name.
_names: dict[bytes, tuple[bytes, int]] = {}
_STATIC_KINDS: Final = [
    (_KINDS.get(name, PLAIN), value, len(name) + len(value) + _FIELD_BYTES) for name, value in STATIC
]
#: The only indexed field that HTTP/2 does not know.
_TRANSFER_ENCODING: Final = 0x80 | STATIC.index((b"transfer-encoding", b""))


class TooLarge(Malformed):
    """Nothing is wrong with the fields, as far as they were looked at, but that they are too many or too long.

    `method`: of a request; b"" when it was not read.
    """

    def __init__(self, found: list[tuple[int, int, int, bytes]]) -> None:
        super().__init__("a header list that is too large")
        self.method = next((value for kind, _, _, value in found if kind == METHOD), b"")


def walk(block: bytes, most: int = LIST_BYTES) -> list[tuple[int, int, int, bytes]]:
    """(kind, start, end, value) of the fields that are not PLAIN, and NOT_KEPT before each of which it is true.

    Raises Violation when it is no block that stands alone, Malformed when a field is not what HTTP allows, TooLarge
    as soon as its list has more than `most` bytes.
    """
    try:
        return _walk(block, most)
    except IndexError:
        raise Violation(COMPRESSION_ERROR, "a header block that ends within a field") from None


def _walk(block: bytes, left: int) -> list[tuple[int, int, int, bytes]]:
    found: list[tuple[int, int, int, bytes]] = []
    at = 0
    size = len(block)
    regular = False
    while at < size:
        first = block[at]
        start = at
        known: tuple[int, bytes, int] | None
        if first >= 0x80:
            if not 0x80 < first < 0x80 + len(_STATIC_KINDS):
                raise Violation(COMPRESSION_ERROR, "an entry of a header table of size 0")
            if first == _TRANSFER_ENCODING:
                raise Malformed("transfer-encoding: belongs to HTTP/1.1")
            known = _STATIC_KINDS[first & 0x7F]
            at += 1
        else:
            if first in _SPELLED:
                length = block[at + 1] & 0x7F
                at += 2 + length
                more = block[at] & 0x7F
                at = at + 1 + more if length != 0x7F != more else _literal_end(block, start, first)
            else:
                at = _literal_end(block, at, first)
            if at > size:
                raise IndexError
            field = block[start:at]
            known = _known.get(field)
            if known is None:
                known = _learn(field)
                found.append((NOT_KEPT, start, start, b""))
        kind, value, listed = known
        left -= listed
        if left < 0:
            raise TooLarge(found)
        if kind == PLAIN:
            regular = True
        else:
            if kind > LAST_PSEUDO:
                regular = True
            elif regular:
                raise Malformed("a pseudo-header after a header")
            found.append((kind, start, at, value))
    return found


def _literal_end(block: bytes, at: int, first: int) -> int:
    if 0x20 <= first < 0x40:
        raise Violation(COMPRESSION_ERROR, "a table size within a header block")
    mask = 0x3F if first >= 0x40 else 0x0F
    index = first & mask
    at += 1
    if index == mask:
        index, at = integer(block, at - 1, mask)
    if index == 0:
        size = block[at] & 0x7F
        at += 1
        if size == 0x7F:
            size, at = integer(block, at - 1, 0x7F)
        at += size
    elif index >= len(_STATIC_KINDS):
        raise Violation(COMPRESSION_ERROR, "an entry of a header table of size 0")
    size = block[at] & 0x7F
    at += 1
    if size == 0x7F:
        size, at = integer(block, at - 1, 0x7F)
    return at + size


def _learn(field: bytes) -> tuple[int, bytes, int]:
    """Looks at a literal for the first time."""
    first = field[0]
    at = 2 + (field[1] & 0x7F) if first in (0x00, 0x40) else 0
    known_name = _names.get(field[:at]) if at else None
    if known_name is not None:
        name, kind = known_name
    else:
        name, kind, at = _learn_name(field)
    size, start = integer(field, at, 0x7F)
    value = field[start : start + size]
    coded = field[at] & 0x80
    if kind != PLAIN or name == b"te" or name in _HOP:
        if coded:
            value = huffman_decode(value)
        if _VALUE.fullmatch(value) is None:
            raise Malformed(f"{name.decode()}: control characters, or spaces around the value")
        if name in _HOP:
            raise Malformed(f"{name.decode()}: belongs to HTTP/1.1")
        if name == b"te" and value.lower() != b"trailers":
            raise Malformed("te: only trailers")
        grammar = _GRAMMARS.get(kind)
        if grammar is not None and grammar.fullmatch(value) is None:
            raise Malformed(f"{name.decode()}: {value[:40]!r} is none")
        size = len(value)
    else:
        if coded:
            size = huffman_value(value)
            if size < 0:
                huffman_decode(value)  # which raises Violation when it is the coding that is wrong
                raise Malformed(f"{name.decode()}: control characters in the value")
        elif _VALUE.fullmatch(value) is None:
            raise Malformed(f"{name.decode()}: control characters, or spaces around the value")
        value = b""
    known = (kind, value, len(name) + size + _FIELD_BYTES)
    if len(field) <= _CACHED_BYTES and not 0x10 <= first < 0x20:
        if len(_known) >= _CACHED:
            _known.clear()
        _known[field] = known
    return known


def _learn_name(field: bytes) -> tuple[bytes, int, int]:
    """(name, kind, position after it)"""
    first = field[0]
    index, at = integer(field, 0, 0x3F if first >= 0x40 else 0x0F)
    if index:
        name = STATIC[index][0]
        return name, _KINDS.get(name, PLAIN), at
    name, at = string(field, at)
    if _NAME.fullmatch(name) is None:
        raise Malformed(f"header name {name[:40]!r}: lower-case letters, digits and !#$%&'*+-.^_`|~")
    if name in _HOP:
        raise Malformed(f"{name.decode()}: belongs to HTTP/1.1")
    if name[0] == 58 and name not in _KINDS:  # a colon
        raise Malformed(f"pseudo-header {name[:40]!r} is not known")
    kind = _KINDS.get(name, PLAIN)
    if at <= _NAME_BYTES:
        if len(_names) >= _CACHED:
            _names.clear()
        _names[field[:at]] = name, kind
    return name, kind, at


def fields(block: bytes) -> list[HeaderField]:
    """Every field of a block that was walked; slow, for headers that are looked at seldom."""
    found = []
    at = 0
    while at < len(block):
        first = block[at]
        if first >= 0x80:
            found.append(HeaderField(*STATIC[first & 0x7F]))
            at += 1
            continue
        index, at = integer(block, at, 0x3F if first >= 0x40 else 0x0F)
        if index:
            name = STATIC[index][0]
        else:
            name, at = string(block, at)
        value, at = string(block, at)
        found.append(HeaderField(name, value, 0x10 <= first < 0x20))
    return found
