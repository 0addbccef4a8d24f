"""What an activator's environment says: Knative's variables for its activator, and a few of our own.

Names, defaults and forms of the first are Knative's (cmd/activator/main.go), so that its Deployment can run this
process unchanged; ours begin with GALAXY_. A value that can't be read ends the start with its name and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kserve_ext.api import durations
from kserve_ext.kube.identity import MODES
from kserve_ext.kube.pod import cluster_domain

T = TypeVar("T")

RESOLV_CONF = Path("/etc/resolv.conf")
AUTOSCALER_PORT = 8080


class BadEnvironment(Exception):
    """The message names the variable, and what to write instead."""


@dataclass(frozen=True, slots=True)
class Settings:
    pod_name: str
    pod_ip: str
    namespace: str  # of Knative itself
    domain: str  # of the cluster
    idle_connections: int
    idle_connections_per_pod: int
    probe_timeout_s: float
    probe_every_s: float
    logging_config: str  # names of ConfigMaps
    observability_config: str
    autoscaler: str  # where reports go
    http1_port: int
    http2_port: int
    https_port: int
    metrics_port: int
    profiling_port: int
    peer_port: int  # where other activators of ours speak to this one
    #: Requests held per revision, and bytes that all held requests together may take.
    held_requests: int
    held_bytes: int
    #: After SIGTERM: probes fail, everything is served; then what is under way is waited for.
    drain_s: float
    grace_s: float
    #: Where addresses come from: endpoints, endpointslices, or auto: slices where they may be read.
    endpoints: str
    #: Between parts of ours: off, permissive or strict.
    mutual_tls: str

    @property
    def family(self) -> str:
        return "IPv6" if ":" in self.pod_ip else "IPv4"

    @property
    def everywhere(self) -> str:
        """The address to listen on."""
        return "::" if self.family == "IPv6" else "0.0.0.0"


def read(environ: Mapping[str, str], resolv_conf: Path = RESOLV_CONF) -> Settings:
    def value(name: str, default: str, parse: Callable[[str], T], form: str) -> T:
        text = environ.get(name, "") or default
        try:
            return parse(text)
        except ValueError as error:
            why = f": {error}" if str(error) else ""
            raise BadEnvironment(f"{name}={text!r}{why}. Write {form}") from error

    def number(name: str, default: int) -> int:
        return value(name, str(default), _number, "a whole number, 0 or more")

    def port(name: str, default: int) -> int:
        return value(name, str(default), _port, "a port: a whole number up to 65535")

    def duration(name: str, default: str) -> float:
        return value(name, default, _duration, "a duration such as 300ms or 45s")

    def required(name: str) -> str:
        if not environ.get(name):
            raise BadEnvironment(
                f"{name} is not set: take it from the pod's own fields with the downward API"
            )
        return environ[name]

    namespace = environ.get("SYSTEM_NAMESPACE") or "knative-serving"
    domain = environ.get("CLUSTER_DOMAIN") or cluster_domain(resolv_conf)
    return Settings(
        pod_name=required("POD_NAME"),
        pod_ip=required("POD_IP"),
        namespace=namespace,
        domain=domain,
        idle_connections=number("MAX_IDLE_PROXY_CONNS", 1000),
        idle_connections_per_pod=number("MAX_IDLE_PROXY_CONNS_PER_HOST", 100),
        probe_timeout_s=duration("PROBE_TIMEOUT", "300ms"),
        probe_every_s=duration("PROBE_FREQUENCY", "200ms"),
        logging_config=environ.get("CONFIG_LOGGING_NAME") or "config-logging",
        observability_config=environ.get("CONFIG_OBSERVABILITY_NAME") or "config-observability",
        autoscaler=value(
            "GALAXY_AUTOSCALER",
            f"ws://autoscaler.{namespace}.svc.{domain}:{AUTOSCALER_PORT}",
            _websocket,
            "a URL such as ws://autoscaler.knative-serving.svc.cluster.local:8080",
        ),
        http1_port=port("GALAXY_HTTP1_PORT", 8012),
        http2_port=port("GALAXY_HTTP2_PORT", 8013),
        https_port=port("GALAXY_HTTPS_PORT", 8112),
        metrics_port=port("GALAXY_METRICS_PORT", 9090),
        profiling_port=port("PROFILING_PORT", 8008),
        peer_port=port("GALAXY_PEER_PORT", 8014),
        held_requests=number("GALAXY_HELD_REQUESTS", 10_000),
        held_bytes=number("GALAXY_HELD_BYTES", 128 << 20),
        drain_s=duration("GALAXY_DRAIN", "45s"),
        grace_s=duration("GALAXY_GRACE", "540s"),
        endpoints=value("GALAXY_ENDPOINTS", "auto", _source, "endpoints, endpointslices or auto"),
        mutual_tls=value("GALAXY_MUTUAL_TLS", "off", _mode, "off, permissive or strict"),
    )


def _number(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def _port(text: str) -> int:
    port = _number(text)
    if port > 65535:
        raise ValueError
    return port


def _websocket(text: str) -> str:
    if not re.fullmatch(r"wss?://[^/\s]+(/\S*)?", text):
        raise ValueError
    return text


def _duration(text: str) -> float:
    length = durations.seconds(text)
    if length < 0:
        raise ValueError
    return length


def _source(text: str) -> str:
    if text not in ("auto", "endpoints", "endpointslices"):
        raise ValueError
    return text


def _mode(text: str) -> str:
    if text not in MODES:
        raise ValueError
    return text
