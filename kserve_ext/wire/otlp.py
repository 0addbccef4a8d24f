"""What every export of OpenTelemetry's protocol (OTLP) has in common: a resource, scopes, attributes.

Spans are traces.py's, metrics are otlp_metrics.py's. In the specification: opentelemetry/proto/{common,resource}/v1,
and the three nested messages that trace/v1 and metrics/v1 have alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kserve_ext.wire.protobuf import message, number, text


def attribute(name: str, value: str | int) -> bytes:
    """A KeyValue."""
    return text(1, name) + message(2, text(1, value) if isinstance(value, str) else number(3, value))


def exported(resource: Mapping[str, str], scopes: Iterable[tuple[str, Sequence[bytes]]]) -> bytes:
    """An Export...ServiceRequest; of each scope its name and its spans, or metrics, encoded."""
    attributes = b"".join(message(1, attribute(name, value)) for name, value in resource.items())
    within = [
        message(2, message(1, text(1, scope)) + b"".join(message(2, item) for item in items))
        for scope, items in scopes
    ]
    return message(1, message(1, attributes) + b"".join(within))
