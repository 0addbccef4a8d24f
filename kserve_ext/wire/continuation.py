"""A marked event stream: which of its bytes a client may have, and what another instance needs to go on from there.

An instance that is asked to ends what it writes of a stream with marks, comments of their own: `: galaxy TEXT`. A
mark accounts for everything before it, so bytes are let through up to a mark and held back behind it: whenever the
stream breaks off, the client has exactly what the record tells of. What a mark says is the instances' own business
(runtimes/vllm_pd/continuation.py); only `done` and `error` mean something here: the stream is whole, or nobody may go
on with it. Clients never see a mark. Takes and makes chunked bodies.

Hot dialect, see http1.py.
"""

from __future__ import annotations

import re
from typing import Final

from kserve_ext.wire.http1_lines import Malformed

#: A request to an instance has this field with MARKS, or RESUME and how much of its body is the request, the record
#: follows; a response whose stream is marked has it with what the record begins with.
FIELD: Final = b"X-Galaxy-Continuation"
MARKS: Final = b"marks"
RESUME: Final = b"resume="
#: What the client sees where one instance ended and another goes on.
SEAM: Final = b": continued on another instance\n\n"
END: Final = b"0\r\n\r\n"

_MARK: Final = b"\n: galaxy "
_MARK_SIZE: Final = len(_MARK)
_DONE: Final = b"done"
_ERROR: Final = b"error"
_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,8}(?:;[\t -~]*)?")
_LINE_BYTES: Final = 1024
_EVENT_BYTES: Final = 4 * 1024 * 1024  # one event, or what an instance writes without a mark
_RECORD_BYTES: Final = 1024 * 1024


class MarkedStream:
    """One response, over all instances that it comes from."""

    __slots__ = ("_held", "_record", "_rest", "done", "ended", "open", "surplus")

    def __init__(self, begins: bytes) -> None:
        """`begins`: the value of FIELD in the response's head."""
        self.open = True  # another instance may go on with it
        self.done = False  # all of it was let through
        self.ended = False  # the body's end was read
        self.surplus = False  # bytes followed it
        self._record = bytearray(begins)
        self._rest = b""  # of a chunk that isn't here as a whole
        self._held = b""  # payload behind the last mark

    @property
    def record(self) -> bytes:
        return bytes(self._record)

    def feed(self, data: bytes) -> bytes:
        """The next bytes of the instance's body; what the client gets, whole chunks. Raises Malformed."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        payload = self._held
        at = 0
        size = len(data)
        while at < size:
            line = data.find(b"\r\n", at)
            if line < 0:
                if size - at > _LINE_BYTES:
                    raise Malformed("chunk-size line is too long", 502)
                break
            digits = data[at:line]
            if _SIZE.fullmatch(digits) is None:
                raise Malformed("chunk size: hexadecimal digits, then an optional extension", 502)
            length = int(digits.partition(b";")[0], 16)
            if not length:
                end = data.find(b"\r\n\r\n", line)
                if end < 0:
                    if size - line > _LINE_BYTES:
                        raise Malformed("trailers are too long", 502)
                    break
                self.ended = True
                self.surplus = end + 4 < size
                return self._through(payload, True) + END
            end = line + 2 + length
            if end + 2 > size:
                if length > _EVENT_BYTES:
                    raise Malformed(f"an event is longer than {_EVENT_BYTES} bytes", 502)
                break
            if data[end] != 13 or data[end + 1] != 10:
                raise Malformed("chunk is longer than its size says", 502)
            piece = data[line + 2 : end]
            payload = payload + piece if payload else piece
            at = end + 2
        if at < size:
            self._rest = data[at:]
        return self._through(payload, False)

    def break_off(self) -> None:
        """The instance is gone: what the client doesn't have yet comes from another."""
        self._rest = b""
        self._held = b""

    def _through(self, payload: bytes, ends: bool) -> bytes:
        begin = 0
        passed = b""
        while True:
            at = payload.find(_MARK, begin)
            if at < 0:
                break
            end = payload.find(b"\n\n", at + _MARK_SIZE)
            if end < 0:
                break
            passed += payload[begin : at + 1]
            self._note(payload[at + _MARK_SIZE : end])
            begin = end + 2
        if ends:
            passed += payload[begin:]
            self._held = b""
        else:
            self._held = payload[begin:] if begin else payload
            if len(self._held) > _EVENT_BYTES:
                raise Malformed(f"an event is longer than {_EVENT_BYTES} bytes", 502)
        return b"%x\r\n%b\r\n" % (len(passed), passed) if passed else b""

    def _note(self, text: bytes) -> None:
        if text == _DONE:
            self.done = True
        elif text == _ERROR:
            self.open = False
        elif self.open:
            self._record += b"\n" + text
            if len(self._record) > _RECORD_BYTES:
                self.open = False
                self._record = bytearray()


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)
