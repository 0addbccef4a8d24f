"""What a revision's readiness probe asks of its server: one attempt's form, and how often it is repeated.

As queue-proxy reads it: without a period (or without a probe at all) the server is asked aggressively, every 50 ms
for up to 10 s within one question of others; else once a question, and who asks says how often. An exec probe can't
be run from outside the server: its port is asked instead. In Knative: pkg/queue/readiness, pkg/reconciler/revision/
resources/queue.go.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

RETRY_S: Final = 0.05
POLL_S: Final = 10.0
_AGGRESSIVE_TIMEOUT_S: Final = 0.1
_HERE: Final = "127.0.0.1"


class BadProbe(ValueError):
    """Names the field, and what to write."""


class Asking(NamedTuple):
    host: str
    port: int
    path: str | None  # of HTTP; None: the port takes a connection
    headers: tuple[tuple[str, str], ...]
    timeout_s: float  # of one attempt
    aggressive: bool
    successes: int  # in a row, of an aggressive one
    grpc: str | None = None  # of gRPC's health protocol: the service; None: not that
    tls: bool = False  # of HTTP; whose certificate it is doesn't matter, as to the kubelet


def asking(probe: str, port: int) -> tuple[Asking, ...]:
    """`probe`: a core/v1 Probe as JSON, a list of them (each must succeed), or ""; `port`: the server's."""
    if not probe:
        return (Asking(_HERE, port, None, (), _AGGRESSIVE_TIMEOUT_S, True, 1),)
    try:
        found: Any = json.loads(probe)
    except ValueError as error:
        raise BadProbe(
            f"probe: not JSON ({error}); give the readinessProbe of the user's container"
        ) from None
    several = found if isinstance(found, list) else [found]
    if not all(isinstance(one, dict) for one in several):
        raise BadProbe("probe: neither an object nor a list of objects; give a readinessProbe")
    return tuple(_one(one, port) for one in several)


def _one(probe: dict[str, Any], port: int) -> Asking:
    http = probe.get("httpGet")
    action = http or probe.get("tcpSocket") or probe.get("grpc") or {}
    aggressive = not probe.get("periodSeconds")
    timeout_s = _AGGRESSIVE_TIMEOUT_S if aggressive else float(max(1, probe.get("timeoutSeconds") or 1))
    headers = [(h.get("name", ""), h.get("value", "")) for h in (http or {}).get("httpHeaders") or []]
    path = "/" + str(action.get("path") or "").removeprefix("/") if http is not None else None
    return Asking(
        str(action.get("host") or _HERE),
        _port(action.get("port"), port),
        path,
        tuple(headers),
        timeout_s,
        aggressive,
        int(probe.get("successThreshold") or 1),
        str(action.get("service") or "") if probe.get("grpc") else None,
        str((http or {}).get("scheme") or "").upper() == "HTTPS",
    )


def _port(given: object, port: int) -> int:
    """A name stands for the server's own port: it has one."""
    if isinstance(given, int) and given:
        return given
    if isinstance(given, str) and given.isdigit() and int(given):
        return int(given)
    return port
