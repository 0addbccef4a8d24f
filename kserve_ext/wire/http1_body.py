"""Where a chunked body ends. The walker looks at sizes and line ends only; bytes pass verbatim around it.

A size is hexadecimal digits, nothing before or after them but an optional extension; extension and trailer
lines are bounded and checked like header lines, and trailers may not carry framing or routing fields.

Hot dialect, see http1.py.
"""

from __future__ import annotations

import re
from typing import Final

from kserve_ext.wire.http1 import Malformed

LINE_BYTES: Final = 1024  # longest size line with its extension
TRAILER_BYTES: Final = 8192  # all trailers together
EXTENSION_BYTES: Final = 65536  # of a whole body: more than any sane one, far less than an attack needs

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+"'
#: Extensions without the white space that RFC 9112 allows and llhttp does not.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*+")
_TRAILER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[\t -~\x80-\xff]*")
_FORBIDDEN = frozenset((b"content-length", b"transfer-encoding", b"host", b"trailer", b"connection", b"te"))

_LINE: Final = 0  # a size line, or the part of one that has come
_DATA: Final = 1  # `left` bytes of a chunk, its CR LF included
_TRAILERS: Final = 2
_DONE: Final = 3


class ChunkWalker:
    """feed() until it returns a position: there the body ends."""

    __slots__ = ("_extension", "_left", "_state", "_tail", "_trailers")

    def __init__(self) -> None:
        self._state = _LINE
        self._left = 0
        self._tail = b""  # of an unfinished line, or the CR that came without its LF
        self._trailers = 0
        self._extension = 0

    @property
    def between_chunks(self) -> bool:
        """Another chunk could be inserted here."""
        return self._state == _LINE and not self._tail

    def feed(self, data: bytes, at: int = 0) -> int:
        """Walks data[at:]; the position just after the body, or -1: all of it is body and more follows."""
        n = len(data)
        while at < n:
            if self._state == _DATA:
                left = self._left
                have = n - at
                if have < left:
                    if left - have < 2 and data[n - 1] != 13:  # the CR is here, its LF is not
                        raise Malformed("chunk is longer than its size says")
                    self._left = left - have
                    return -1
                at += left
                if left > 1:
                    if data[at - 2] != 13 or data[at - 1] != 10:
                        raise Malformed("chunk is longer than its size says")
                elif data[at - 1] != 10:
                    raise Malformed("chunk is longer than its size says")
                self._state = _LINE
                continue
            if self._tail:
                skip = len(self._tail)
                line_source = self._tail + data[at : at + LINE_BYTES + 2]
                end = line_source.find(b"\r\n")
                line = line_source[:end]
                next_at = at + end + 2 - skip
            else:
                end = data.find(b"\r\n", at)
                line = data[at:end]
                next_at = end + 2
            if end < 0:
                self._tail += data[at:] if n - at <= LINE_BYTES else data[at : at + LINE_BYTES + 2]
                if len(self._tail) > LINE_BYTES:
                    raise Malformed(f"chunk-size or trailer line is longer than {LINE_BYTES} bytes")
                return -1
            self._tail = b""
            at = next_at
            if len(line) > LINE_BYTES:
                raise Malformed(f"chunk-size or trailer line is longer than {LINE_BYTES} bytes")
            if self._state == _LINE:
                match = _SIZE.fullmatch(line)
                if match is None:
                    raise Malformed("chunk size: hexadecimal digits, then an optional extension")
                size = int(match[1], 16)
                if len(line) > 15:
                    self._extension += len(line)
                    if self._extension > EXTENSION_BYTES:
                        raise Malformed("chunk extensions outweigh the body")
                if size:
                    self._left = size + 2
                    self._state = _DATA
                else:
                    self._state = _TRAILERS
            elif line:
                self._trailers += len(line) + 2
                match = _TRAILER.fullmatch(line)
                if match is None or match[1].lower() in _FORBIDDEN:
                    raise Malformed("trailer: not a header line, or one that frames or routes the message")
                if self._trailers > TRAILER_BYTES:
                    raise Malformed(f"trailers are longer than {TRAILER_BYTES} bytes")
            else:
                self._state = _DONE
                return at
        return -1
