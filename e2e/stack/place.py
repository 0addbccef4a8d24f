"""Where one stack lives: its name, its addresses, its namespaces, its folder. Names only; makes nothing.

Every stack has its own network namespaces, so the addresses below are the same in each and never meet.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

CLONE = Path(__file__).resolve().parents[2]
PREFIX = "kst"
NODE_IP = "10.245.0.1"
#: The node's end of every pod's link; the same address on all of them, since each link has but two ends.
GATEWAY = "169.254.1.1"
POD_RANGE = "10.244.0.0/16"
SERVICE_RANGE = "10.96.0.0/16"
NODE_NAME = "node-1"
API_SERVER = f"https://{NODE_IP}:6443"
SYSTEM_NAMESPACE = "knative-serving"
#: A fixed token for the administrator; the API server listens in the stack's own namespace only.
ADMIN_TOKEN = "admin"


def root() -> Path:
    return Path(tempfile.gettempdir()) / f"kserve-galaxy-e2e-{os.getuid()}"


@dataclass(frozen=True, slots=True)
class Place:
    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]{1,16}", self.name):
            raise ValueError(f"stack name {self.name!r}: 1 to 16 lower-case letters and digits")

    @property
    def folder(self) -> Path:
        return root() / self.name

    @property
    def record(self) -> Path:
        return self.folder / "stack.json"

    @property
    def logs(self) -> Path:
        return self.folder / "log"

    @property
    def host(self) -> Path:
        """What is / to hostPath volumes of its pods."""
        return self.host_of(NODE_NAME)

    def host_of(self, node: str) -> Path:
        return self.folder / ("host" if node == NODE_NAME else f"host-{node}")

    @property
    def certificates(self) -> Path:
        return self.folder / "certificates"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def node(self) -> str:
        """The namespace of the control plane, of kube-proxy, and of whoever sends requests."""
        return f"{PREFIX}-{self.name}-node"

    def pod(self, number: int) -> str:
        return f"{PREFIX}-{self.name}-p{number}"

    def owns(self, namespace: str) -> bool:
        return namespace.startswith(f"{PREFIX}-{self.name}-")


def pod_address(number: int) -> str:
    """Addresses come back after 60,000 pods, so that nobody meets a stale one."""
    number = 2 + number % 60_000
    return f"10.244.{number // 256}.{number % 256}"


def pod_number(address: str) -> int:
    """Which of the first 60,000 pods has it."""
    high, low = address.split(".")[2:]
    return 256 * int(high) + int(low) - 2
