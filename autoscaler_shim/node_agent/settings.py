"""What a node agent's environment says (manifests/components/standby/agent.yaml)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoscaler_shim.knative.settings import BadEnvironment, mutual_tls, port

SOCKET = Path("/run/kserve-galaxy/agent.sock")
PORT = 8015


@dataclass(frozen=True, slots=True)
class Settings:
    node: str
    pod_ip: str
    namespace: str = "knative-serving"
    socket: Path = SOCKET
    port: int = PORT
    metrics_port: int = 9090
    mutual_tls: str = "off"  # or permissive, or strict
    #: Folders whose entries are models; None: the node has no such cache.
    model_cache: Path | None = None
    #: Where Fluid mounts datasets on this node (/runtime-mnt); None: it doesn't.
    fluid_mounts: Path | None = None


def read(environ: Mapping[str, str]) -> Settings:
    """Raises BadEnvironment."""

    def required(name: str) -> str:
        if not environ.get(name):
            raise BadEnvironment(
                f"{name} is not set: take it from the pod's own fields with the downward API"
            )
        return environ[name]

    def folder(name: str) -> Path | None:
        text = environ.get(name, "")
        if text and not text.startswith("/"):
            raise BadEnvironment(f"{name}={text!r}: write an absolute path")
        return Path(text) if text else None

    return Settings(
        node=required("NODE_NAME"),
        pod_ip=required("POD_IP"),
        namespace=environ.get("SYSTEM_NAMESPACE") or "knative-serving",
        socket=folder("GALAXY_SLOT_SOCKET") or SOCKET,
        port=port(environ, "GALAXY_AGENT_PORT", PORT),
        metrics_port=port(environ, "GALAXY_METRICS_PORT", 9090),
        mutual_tls=mutual_tls(environ),
        model_cache=folder("GALAXY_MODEL_CACHE"),
        fluid_mounts=folder("GALAXY_FLUID_MOUNTS"),
    )
