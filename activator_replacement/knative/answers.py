"""What an activator answers itself: probes, and errors in the texts that Knative's own uses.

Decided here as status, headers and body, so that HTTP/1.1 and HTTP/2 say the same; `http1` lays it out for HTTP/1.1.
Errors are plain text, as Go's http.Error writes them; Retry-After is ours. In Knative: pkg/activator/handler,
networking's pkg/http/probe/handler.go.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Final, NamedTuple

TIMED_OUT: Final = "activator request timeout"
QUEUE_FULL: Final = "pending request queue full"

_TEXT: Final = (b"Content-Type", b"text/plain; charset=utf-8")
_ERROR: Final = (_TEXT, (b"X-Content-Type-Options", b"nosniff"))
#: As Go's html.EscapeString.
_ESCAPED: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&#39;", '"': "&#34;"})


class Answer(NamedTuple):
    status: int
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()  # without Content-Length


def probe(kubelet: bool, probe: bytes, hash_: bytes, unhealthy: str) -> Answer | None:
    """The answer to a probe, whatever its method and path; None: it is none.

    `kubelet`: by its User-Agent or K-Kubelet-Probe; `probe`, `hash_`: K-Network-Probe and K-Network-Hash.
    """
    if kubelet:
        return error(500, unhealthy) if unhealthy else Answer(200)
    if not probe:
        return None
    if probe == b"probe":
        if not hash_:
            return error(400, 'a probe request must contain a non-empty "K-Network-Hash" header')
        return Answer(200, b"", ((b"K-Network-Hash", hash_),))
    if probe == b"activator":
        return Answer(200, b"activator", (_TEXT,))
    value = probe.decode("latin-1").translate(_ESCAPED)
    return error(400, f'unexpected probe header value: "{value}"')


def error(status: int, reason: str, retry_after_s: float = 0.0) -> Answer:
    """`reason` "": without a body."""
    wait = ((b"Retry-After", b"%d" % math.ceil(retry_after_s)),) if retry_after_s else ()
    if not reason:
        return Answer(status, b"", wait)
    if status == 504:  # written without http.Error there
        return Answer(status, reason.encode(), (_TEXT, *wait))
    return Answer(status, reason.encode("utf-8", "replace") + b"\n", (*_ERROR, *wait))


def http1(answer: Answer, *, close: bool = False, to_head: bool = False) -> bytes:
    """A whole response; `to_head`: it answers HEAD, so its body is left out."""
    lines = [b"HTTP/1.1 %d %s" % (answer.status, HTTPStatus(answer.status).phrase.encode())]
    lines += [name + b": " + value for name, value in answer.headers]
    lines.append(b"Content-Length: %d" % len(answer.body))
    if close:
        lines.append(b"Connection: close")
    return b"\r\n".join([*lines, b"", b"" if to_head else answer.body])
