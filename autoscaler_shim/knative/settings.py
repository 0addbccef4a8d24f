"""What the autoscaler's environment says: the variables of Knative's Deployment, and a few of our own.

Ours, all optional: GALAXY_STATS_PORT (8080), GALAXY_METRICS_PORT (9090), GALAXY_SCRAPE_PORT (9090, of pods);
GALAXY_STANDBY (off), GALAXY_PEER_PORT (8014, of activators).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kserve_ext.core.knative.buckets import Buckets, Holder
from kserve_ext.kube.identity import MODES
from kserve_ext.kube.pod import cluster_domain

RESOLV_CONF: Final = Path("/etc/resolv.conf")


class BadEnvironment(ValueError):
    """A variable is missing or wrong; says which, and what it should be."""


@dataclass(frozen=True, slots=True)
class StatefulSet:
    """One of several replicas that share the buckets by their ordinals, without Leases."""

    name: str
    ordinal: int
    service: str
    port: str
    protocol: str

    def buckets(self, total: int, namespace: str, domain: str) -> Buckets:
        """Each has the address of its pod as a name."""
        if self.ordinal >= total:
            raise BadEnvironment(
                f"STATEFUL_CONTROLLER_ORDINAL: {self.ordinal} is not below {total}, the number of buckets in "
                "config-leader-election; raise buckets or lower the StatefulSet's replicas"
            )
        return Buckets(
            f"{self.protocol}://{self.name}-{ordinal}.{self.service}.{namespace}.svc.{domain}:{self.port}"
            for ordinal in range(total)
        )


@dataclass(frozen=True, slots=True)
class Settings:
    holder: Holder
    namespace: str
    domain: str
    leader_election: str = "config-leader-election"
    logging_config: str = "config-logging"
    observability_config: str = "config-observability"
    stateful_set: StatefulSet | None = None
    stats_port: int = 8080
    metrics_port: int = 9090
    scrape_port: int = 9090
    profiling_port: int = 8008
    mutual_tls: str = "off"  # or permissive, or strict
    host: str | None = None  # None: all addresses
    standby: bool = False  # whether pools of standby pods are kept, and used
    peer_port: int = 8014  # where activators hear what serves


def read(environ: Mapping[str, str], resolv_conf: Path = RESOLV_CONF) -> Settings:
    def required(name: str) -> str:
        if not environ.get(name):
            raise BadEnvironment(
                f"{name} is not set: take it from the pod's own fields with the downward API"
            )
        return environ[name]

    return Settings(
        holder=Holder(required("POD_NAME"), required("POD_IP")),
        namespace=environ.get("SYSTEM_NAMESPACE") or "knative-serving",
        domain=environ.get("CLUSTER_DOMAIN") or cluster_domain(resolv_conf),
        leader_election=environ.get("CONFIG_LEADERELECTION_NAME") or "config-leader-election",
        logging_config=environ.get("CONFIG_LOGGING_NAME") or "config-logging",
        observability_config=environ.get("CONFIG_OBSERVABILITY_NAME") or "config-observability",
        stateful_set=_stateful_set(environ),
        stats_port=port(environ, "GALAXY_STATS_PORT", 8080),
        metrics_port=port(environ, "GALAXY_METRICS_PORT", 9090),
        scrape_port=port(environ, "GALAXY_SCRAPE_PORT", 9090),
        profiling_port=port(environ, "PROFILING_PORT", 8008),
        mutual_tls=mutual_tls(environ),
        standby=_standby(environ),
        peer_port=port(environ, "GALAXY_PEER_PORT", 8014),
    )


def _stateful_set(environ: Mapping[str, str]) -> StatefulSet | None:
    """Knative takes this way only when both of its variables are there and make sense."""
    name, _, ordinal = environ.get("STATEFUL_CONTROLLER_ORDINAL", "").rpartition("-")
    service = environ.get("STATEFUL_SERVICE_NAME", "")
    if not name or not ordinal.isdecimal() or not service:
        return None
    port = environ.get("STATEFUL_SERVICE_PORT") or "80"
    return StatefulSet(name, int(ordinal), service, port, environ.get("STATEFUL_SERVICE_PROTOCOL") or "http")


def _standby(environ: Mapping[str, str]) -> bool:
    said = environ.get("GALAXY_STANDBY") or "off"
    if said not in ("on", "off"):
        raise BadEnvironment(f"GALAXY_STANDBY={said!r}: write on or off")
    return said == "on"


def mutual_tls(environ: Mapping[str, str]) -> str:
    mode = environ.get("GALAXY_MUTUAL_TLS") or "off"
    if mode not in MODES:
        raise BadEnvironment(f"GALAXY_MUTUAL_TLS={mode!r}: write one of {', '.join(MODES)}")
    return mode


def port(environ: Mapping[str, str], name: str, default: int) -> int:
    """Raises BadEnvironment."""
    text = environ.get(name) or str(default)
    if not text.isdecimal() or int(text) > 65535:
        raise BadEnvironment(f"{name}={text!r}: not a port; write a number up to 65535")
    return int(text)
