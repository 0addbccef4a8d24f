"""What a queue-proxy answers itself: probes, in the texts that Knative's own uses.

`health` and `network_probe` decide for HTTP/1.1 and HTTP/2 alike. In Knative: pkg/queue/health/handler.go, pkg's
network/handlers/drain.go.
"""

from __future__ import annotations

from typing import Final

from activator_replacement.knative.answers import Answer, error

TIMED_OUT: Final = "request timeout"
QUEUE_FULL: Final = "pending request queue full"
NO_REVISION: Final = "this standby pod has no revision yet"
SHUTTING_DOWN: Final = "shutting down"
_TEXT: Final = (b"Content-Type", b"text/plain; charset=utf-8")

READY: Final = Answer(200, b"queue", (_TEXT,))
NOT_READY: Final = Answer(503)


def health(probe: bytes, draining: bool) -> Answer | None:
    """To who asks whether this pod is ready, by its User-Agent; None: that has to be found out.

    `probe`: K-Network-Probe.
    """
    if draining:
        return error(503, SHUTTING_DOWN)
    if probe != b"queue":
        return error(400, f"unexpected probe header value: {probe.decode('latin-1')}")
    return None


def network_probe(hash_: bytes, draining: bool, revision: bool) -> Answer:
    """To an ingress that asks whether it gets here, by K-Network-Probe: probe."""
    if draining:
        return error(503, SHUTTING_DOWN)
    if not hash_:
        return error(400, 'a probe request must contain a non-empty "K-Network-Hash" header')
    if not revision:
        return error(503, NO_REVISION)
    return Answer(200, b"", ((b"K-Network-Hash", hash_),))
