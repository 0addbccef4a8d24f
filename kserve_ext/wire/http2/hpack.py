"""HPACK (RFC 7541) as far as a relay needs it: strings, Huffman decoding, and a decoder with a dynamic table.

We tell every peer that its table has size 0, so that a header block stands alone; the table here only serves the
blocks that a peer sent before it had read that. Nothing is ever encoded with Huffman or a table: what we add to a
block is a plain literal.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from kserve_ext.wire.http2.frames import COMPRESSION_ERROR, Violation

DEFAULT_TABLE: Final = 4096

_PSEUDO = (
    ":authority= :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https :status=200 "
    ":status=204 :status=206 :status=304 :status=400 :status=404 :status=500"
)
_NAMES = (
    "accept-charset accept-encoding accept-language accept-ranges accept access-control-allow-origin age allow "
    "authorization cache-control content-disposition content-encoding content-language content-length "
    "content-location content-range content-type cookie date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified link location max-forwards "
    "proxy-authenticate proxy-authorization range referer refresh retry-after server set-cookie "
    "strict-transport-security transfer-encoding user-agent vary via www-authenticate"
)


def _static() -> list[tuple[bytes, bytes]]:
    table = [(b"", b"")]
    for field in _PSEUDO.encode().split(b" "):
        name, _, value = field.rpartition(b"=")
        table.append((name, value))
    for name in _NAMES.encode().split(b" "):
        table.append((name, b"gzip, deflate" if name == b"accept-encoding" else b""))
    return table


#: Appendix A, from 1 on.
STATIC: Final = _static()
STATIC_SIZE: Final = len(STATIC) - 1

#: Appendix B: the lengths of the codes of 0..255 and EOS, "A" for 5 bits. The code is canonical: lengths say it all.
_LENGTHS = (
    "ISXXXXXXXTZXXZXXXXXXXXZXXXXXXXXXBFFHIBDGFFDGDBBBAAABBBBBBBCDKBHFIBCCCCCCCCCCCCCCCCCCCCCCDCDIOIJB"
    "KABABABBBACCBBBABCBAABCCCCCKGJIXPRPPRRRSRSSSSSTSTTRSTSSSSQRSRSSTRQPRRSSQSRRTQRSSQQRQSRSSPRRRSRRS"
    "VVPORSRUVVVWWVTUOQVWWVWTQQVVXWWWPTPQRQQSRRUUTTVSVWVVWWWWWXWWWWWVZ"
)
_EOS: Final = 256
_DEAD: Final = -1  # after EOS
#: Control characters but the tab: Go takes none of them, and gives up a connection that goes on after one.
_FORBIDDEN: Final = frozenset((*range(9), *range(10, 32), 127))


class _Huffman:
    """A machine that takes eight bits a step: rows[node][byte] = (next node, the bytes that were completed)."""

    def __init__(self) -> None:
        self._tree: list[list[int | None]] = [[None, None]]  # a child: a node, or -2 - symbol
        code = width = 0
        for length, symbol in sorted((ord(c) - ord("A") + 5, s) for s, c in enumerate(_LENGTHS)):
            code <<= length - width
            width = length
            self._add(symbol, code, length)
            code += 1
        self.rows: list[list[tuple[int, bytes]] | None] = [None] * len(self._tree)
        self.rows.append([(_DEAD, b"")] * 256)  # _DEAD is its index from the end
        self.checks: list[list[int] | None] = [None] * len(self._tree)  # the same without the text
        self.checks.append([_DEAD] * 256)
        #: Where a string may end: up to seven ones after a symbol.
        self.ends = {0}
        node: int | None = 0
        for _ in range(7):
            node = self._tree[node or 0][1]
            self.ends.add(node or 0)

    def _add(self, symbol: int, code: int, length: int) -> None:
        node = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            child = self._tree[node][bit]
            if child is None:
                self._tree.append([None, None])
                child = self._tree[node][bit] = len(self._tree) - 1
            node = child
        self._tree[node][code & 1] = -2 - symbol

    def row(self, start: int) -> list[tuple[int, bytes]]:
        """Made when it is first needed: all of them would take longer than a process's start should."""
        row = []
        for byte in range(256):
            node = start
            out = bytearray()
            for shift in range(7, -1, -1):
                child = self._tree[node][byte >> shift & 1]
                if child is None or child == -2 - _EOS:
                    node = _DEAD
                    break
                if child < 0:
                    out.append(-2 - child)
                    node = 0
                else:
                    node = child
            row.append((node, bytes(out)))
        self.rows[start] = row
        return row

    def check(self, start: int) -> list[int]:
        """As row, for a look only: 4 * node + how many characters; what no header value may hold is dead."""
        row = [
            _DEAD if set(done) & _FORBIDDEN else node << 2 | len(done)
            for node, done in self.rows[start] or self.row(start)
        ]
        self.checks[start] = row
        return row


_huffman: Final = _Huffman()


def huffman_decode(data: bytes) -> bytes:
    rows = _huffman.rows
    node = 0
    out = []
    for byte in data:
        row = rows[node]
        if row is None:
            row = _huffman.row(node)
        node, done = row[byte]
        out.append(done)
    if node not in _huffman.ends:
        raise Violation(COMPRESSION_ERROR, "a Huffman-coded string that does not end as one")
    return b"".join(out)


def huffman_value(data: bytes) -> int:
    """How long the header value is whose code this is. -1: it is no code, or holds control characters."""
    checks = _huffman.checks
    node = size = 0
    for byte in data:
        row = checks[node]
        if row is None:
            row = _huffman.check(node)
        step = row[byte]
        node = step >> 2
        size += step & 3
    return size if node in _huffman.ends else -1


def integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """(value, position after it) of the integer whose first byte, of which `mask` belongs to it, is at `at`."""
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    for shift in range(0, 28, 7):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Violation(COMPRESSION_ERROR, "an integer that is too long")


def string(block: bytes, at: int) -> tuple[bytes, int]:
    """(text, position after it). Raises IndexError where the block ends too early."""
    size, start = integer(block, at, 0x7F)
    end = start + size
    if end > len(block):
        raise IndexError
    text = block[start:end]
    return (huffman_decode(text) if block[at] & 0x80 else text), end


def literal(name: bytes, value: bytes, first: int = 0) -> bytes:
    """A field as a literal that no table keeps; `first` 0x10: nor may anybody after us keep it."""
    return b"%c%b%b%b%b" % (first, _size(name), name, _size(value), value)


def _size(text: bytes) -> bytes:
    size = len(text)
    if size < 0x7F:
        return bytes((size,))
    out = bytearray((0x7F,))
    size -= 0x7F
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)


class HeaderField(NamedTuple):
    name: bytes
    value: bytes
    never_indexed: bool = False  # every hop keeps it out of its tables


class Decoder:
    """The decoding half of one direction of a connection, for blocks that may use its dynamic table."""

    __slots__ = ("_entries", "_limit", "_size", "table_size")

    def __init__(self, list_bytes: int) -> None:
        self._limit = list_bytes  # of a decoded list: a short block may name long entries often
        self._entries: deque[tuple[bytes, bytes]] = deque()
        self._size = 0
        self.table_size = DEFAULT_TABLE  # as the peer's encoder said

    def decode(self, block: bytes, most_table: int = DEFAULT_TABLE) -> list[HeaderField]:
        """Raises Violation. `most_table`: what the peer's encoder may choose by now."""
        try:
            return self._decode(block, most_table)
        except IndexError:
            raise Violation(COMPRESSION_ERROR, "a header block that ends within a field") from None

    def _decode(self, block: bytes, most_table: int) -> list[HeaderField]:
        fields: list[HeaderField] = []
        at = total = 0
        size = len(block)
        while at < size:
            first = block[at]
            if first >= 0x80:
                index, at = integer(block, at, 0x7F)
                name, value = self._entry(index)
            elif 0x20 <= first < 0x40:
                wanted, at = integer(block, at, 0x1F)
                if fields or wanted > most_table:
                    raise Violation(
                        COMPRESSION_ERROR, "a table size that was not offered, or not at the start"
                    )
                self.table_size = wanted
                self._evict()
                continue
            else:
                index, at = integer(block, at, 0x3F if first >= 0x40 else 0x0F)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = string(block, at)
                value, at = string(block, at)
                if first >= 0x40:
                    self._insert(name, value)
            total += len(name) + len(value) + 32
            if total > self._limit:
                raise Violation(COMPRESSION_ERROR, f"a header list of more than {self._limit} bytes")
            fields.append(HeaderField(name, value, 0x10 <= first < 0x20))
        return fields

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        if 0 < index <= STATIC_SIZE:
            return STATIC[index]
        if not 0 < index - STATIC_SIZE <= len(self._entries):
            raise Violation(COMPRESSION_ERROR, f"no entry {index} in the header table")
        return self._entries[index - STATIC_SIZE - 1]

    def _insert(self, name: bytes, value: bytes) -> None:
        self._entries.appendleft((name, value))
        self._size += len(name) + len(value) + 32
        self._evict()

    def _evict(self) -> None:
        while self._size > self.table_size:
            name, value = self._entries.pop()
            self._size -= len(name) + len(value) + 32
