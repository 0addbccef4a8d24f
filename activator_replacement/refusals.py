"""The one table from status to answer: every error that the data plane itself writes is made here.

Bodies have OpenAI's shape, {"error": {"message", "type", "code"}}, so that clients of model servers show the
message; the message is the reason that the caller gives, followed by what to do. Never used for what an
instance answers: that passes untouched.
"""

from __future__ import annotations

import json
import math
from typing import Final, NamedTuple


class Kind(NamedTuple):
    phrase: str
    type: str  # OpenAI's error type
    code: str  # stable, for programs
    remedy: str
    retry_after_s: float = 0.0  # when the caller names none
    close: bool = False  # the connection can't be used further


REFUSALS: Final[dict[int, Kind]] = {
    400: Kind("Bad Request", "invalid_request_error", "bad_request", "Correct the request.", close=True),
    404: Kind(
        "Not Found",
        "invalid_request_error",
        "not_found",
        "Use the host of a service (`galaxy get` lists them).",
    ),
    408: Kind(
        "Request Timeout",
        "invalid_request_error",
        "request_timeout",
        "Send the request without pauses.",
        close=True,
    ),
    413: Kind(
        "Content Too Large",
        "invalid_request_error",
        "too_large",
        "Send a smaller body, or raise hold-bytes.",
        close=True,
    ),
    421: Kind(
        "Misdirected Request", "invalid_request_error", "misdirected", "Send it to the decode service."
    ),
    429: Kind(
        "Too Many Requests", "rate_limit_error", "queue_full", "Retry after the time in Retry-After.", 1.0
    ),
    431: Kind(
        "Request Header Fields Too Large",
        "invalid_request_error",
        "head_too_large",
        "Send fewer headers.",
        close=True,
    ),
    502: Kind(
        "Bad Gateway", "server_error", "instance_failed", "Retry; `galaxy explain` shows what happened."
    ),
    503: Kind(
        "Service Unavailable", "server_error", "no_capacity", "Retry after the time in Retry-After.", 5.0
    ),
    504: Kind("Gateway Timeout", "server_error", "timeout", "Retry, or raise the revision's timeoutSeconds."),
}
#: As `retry_after_s`: the same request would fail again, until a person has corrected something.
NEVER: Final = -1.0
_CORRECT_FIRST: Final = "Retrying does not help until that is corrected."
#: The connection can't be used further after these.
CLOSING: Final = frozenset(status for status, kind in REFUSALS.items() if kind.close)


def error_json(status: int, reason: str, *, passes: bool = True) -> bytes:
    """`passes`: it may be different later."""
    kind = REFUSALS[status]
    remedy = kind.remedy if passes else _CORRECT_FIRST
    message = f"{reason.rstrip('. ')}. {remedy}" if reason else remedy
    error = {"message": message, "type": kind.type, "param": None, "code": kind.code}
    return json.dumps({"error": error}).encode()


def response(
    status: int,
    reason: str,
    retry_after_s: float = 0.0,
    *,
    request_id: bytes = b"",
    close: bool = False,
    to_head: bool = False,
) -> bytes:
    """A whole response; `to_head`: it answers HEAD, so its body is left out. `retry_after_s` may be NEVER."""
    kind = REFUSALS[status]
    passes = retry_after_s >= 0.0
    body = error_json(status, reason, passes=passes) + b"\n"
    wait = (retry_after_s or kind.retry_after_s) if passes else 0.0
    lines = [
        f"HTTP/1.1 {status} {kind.phrase}".encode(),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
    ]
    if wait:
        lines.append(b"retry-after: %d" % math.ceil(wait))
    if request_id:
        lines.append(b"x-request-id: " + request_id)
    if close:
        lines.append(b"connection: close")
    return b"\r\n".join([*lines, b"", b"" if to_head else body])


def error_event(reason: str) -> bytes:
    """The last event of a stream that broke off; no [DONE] follows."""
    return b"data: " + error_json(502, reason) + b"\n\n"


def event_stream_error(reason: str) -> bytes:
    """The same as the end of a chunked body."""
    event = error_event(reason)
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(event), event)
