"""Going on with a stream at another instance: which requests are prepared for it, and how they are sent again.

A request that may stream tokens is sent with the question for marks, and kept; whether its stream can be continued
is for the instance to say, with the first byte of its response (kserve_ext/wire/continuation.py). Sent again, its
body is followed by the record of what the client has, and the instance begins behind that.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

import re
from typing import Final

from kserve_ext.wire.continuation import FIELD, MARKS, RESUME
from kserve_ext.wire.http1 import RequestHead

#: Instances that one stream is continued at, one after the other: a request that kills engines must come to an end.
MOST_CONTINUATIONS: Final = 3
ASKED: Final = FIELD + b": " + MARKS + b"\r\n"

_STREAMS: Final = re.compile(rb"POST (?:/openai)*/v1/(?:chat/)?completions(?:\?[!-~]*)? HTTP/1\.1")
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[^\r]*", re.IGNORECASE)


def may_stream(facts: RequestHead) -> bool:
    """An OpenAI request for tokens whose body can be kept: of a length that is said."""
    return facts.length > 0 and _STREAMS.fullmatch(facts.lines[0]) is not None


def resumes(facts: RequestHead) -> bytes:
    """The line of the head that says so."""
    return b"%b: %b%d\r\n" % (FIELD, RESUME, facts.length)


def resumption(head: bytes, body: list[bytes], record: bytes) -> bytes:
    """The whole request; `head` as it is forwarded."""
    whole = b"".join((*body, record))
    return _LENGTH.sub(b"\r\nContent-Length: %d" % len(whole), head, count=1) + whole
