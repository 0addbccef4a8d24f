"""What the webhook's environment says. All is optional, as in manifests/components/webhook/deployment.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autoscaler_shim.knative.settings import BadEnvironment, port


@dataclass(frozen=True, slots=True)
class Settings:
    namespace: str = "knative-serving"
    port: int = 8443
    metrics_port: int = 9090
    #: After SIGTERM readiness fails, and everything is answered for so long, as the API server may not know yet.
    drain_s: float = 5.0
    host: str | None = None  # None: all addresses


def read(environ: Mapping[str, str]) -> Settings:
    """Raises BadEnvironment."""
    return Settings(
        namespace=environ.get("SYSTEM_NAMESPACE") or "knative-serving",
        port=port(environ, "GALAXY_WEBHOOK_PORT", 8443),
        metrics_port=port(environ, "GALAXY_METRICS_PORT", 9090),
        drain_s=_seconds(environ, "GALAXY_DRAIN", "5s"),
    )


def _seconds(environ: Mapping[str, str], name: str, default: str) -> float:
    text = environ.get(name) or default
    number = text.removesuffix("s")
    if not number.isdecimal() or len(number) > 4:
        raise BadEnvironment(f"{name}={text!r}: not a number of seconds; write such as {default}")
    return float(number)
