"""How many bytes of a chunked body are its payload: of one that http1_body.py has walked and let pass.

For whoever wants to tell the size of an answer that is passed on as it came.
"""

from __future__ import annotations

_CRLF = 2


class Payload:
    __slots__ = ("_ended", "_left", "_line")

    def __init__(self) -> None:
        self._left = 0  # of a chunk, its CR LF included
        self._line = b""  # of a size, what has come
        self._ended = False  # trailers follow, and what is no part of the body

    def count(self, data: bytes) -> int:
        """Payload bytes in the next bytes of the body."""
        total = at = 0
        while at < len(data) and not self._ended:
            if self._left:
                taken = min(self._left, len(data) - at)
                total += min(taken, max(0, self._left - _CRLF))
                self._left -= taken
                at += taken
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._line += data[at:]
                break
            size = int((self._line + data[at:end]).partition(b";")[0], 16)
            self._line = b""
            self._ended = not size
            self._left = size + _CRLF
            at = end + 1
        return total
