"""What the agent says of its node: what Kubernetes gives out there, what of it is free, and which models are near.

Reading only: the Node object, /proc, /sys/class/infiniband (as `galaxy doctor rdma` does) and the folders named in
the settings. What isn't there counts as none. Free are GPUs that no standby pod of this node has: other pods' are not
known here, as the agent may not list pods; the scheduler knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from kserve_ext.api import quantities
from kserve_ext.core.facts import Label, NodeStatus, Resources
from kserve_ext.core.ids import NodeID
from kserve_ext.core.standby.agent import BUSY
from kserve_ext.core.standby.facts import Slot

GPU: Final = "nvidia.com/gpu"
#: MiB of each GPU, set by NVIDIA's feature discovery.
GPU_MEMORY: Final = "nvidia.com/gpu.memory"
MOST_MODELS: Final = 1000


def resources(node: Mapping[str, Any], root: Path = Path("/")) -> Resources:
    """Of a Node object, and of RDMA devices below `root`; all 0 while the object isn't known."""
    status = node.get("status") or {}
    allocatable = status.get("allocatable") or status.get("capacity") or {}
    labels = (node.get("metadata") or {}).get("labels") or {}
    gpus = _read(quantities.whole, allocatable.get(GPU))
    return Resources(
        cpu_milli=_read(quantities.milli, allocatable.get("cpu")),
        memory_mib=_read(quantities.mebibytes, allocatable.get("memory")),
        gpus=gpus,
        gpu_memory_mib=gpus * _read(quantities.whole, labels.get(GPU_MEMORY)),
        rdma=len(rdma_devices(root)),
    )


def free(capacity: Resources, slots: Iterable[Slot], root: Path = Path("/")) -> Resources:
    taken = sum(slot.gpus for slot in slots)
    gpus = max(0, capacity.gpus - taken)
    each = capacity.gpu_memory_mib // capacity.gpus if capacity.gpus else 0
    return Resources(
        cpu_milli=max(0, capacity.cpu_milli - _load_milli(root)),
        memory_mib=min(capacity.memory_mib, _available_mib(root)),
        gpus=gpus,
        gpu_memory_mib=gpus * each,
        rdma=capacity.rdma,
    )


def rdma_devices(root: Path = Path("/")) -> list[str]:
    """Those with an active port, where programs can open devices at all."""
    if not (root / "dev/infiniband").is_dir() and not (root / "sys/class/infiniband_verbs").is_dir():
        return []
    return [
        device.name
        for device in _folders(root / "sys/class/infiniband")
        if any("ACTIVE" in _text(port / "state") for port in _folders(device / "ports"))
    ]


def models(cache: Path | None, fluid: Path | None) -> tuple[str, ...]:
    """Folders of the cache by name; datasets that Fluid has mounted as fluid://namespace/name."""
    found = [entry.name for entry in _folders(cache)] if cache is not None else []
    if fluid is not None:
        found += [
            f"fluid://{namespace.name}/{dataset.name}"
            for runtime in _folders(fluid)
            for namespace in _folders(runtime)
            for dataset in _folders(namespace)
            if any(entry.name.endswith("-fuse") and _any(entry) for entry in _folders(dataset))
        ]
    return tuple(found[:MOST_MODELS])


def labels(node: Mapping[str, Any]) -> tuple[Label, ...]:
    found = (node.get("metadata") or {}).get("labels") or {}
    return tuple(sorted((str(key), str(value)) for key, value in found.items()))


def status(
    node: NodeID,
    addr: str,
    incarnation: int,
    seq: int,
    read: Mapping[str, Any],
    capacity: Resources,
    slots: tuple[Slot, ...],
    near: tuple[str, ...],
    root: Path = Path("/"),
) -> NodeStatus:
    """`read`: the Node object; `near`: models."""
    ready: dict[str, int] = {}
    for slot in slots:
        if slot.state == "ready":
            ready[slot.pool] = ready.get(slot.pool, 0) + 1
    return NodeStatus(
        node,
        addr,
        incarnation,
        seq,
        capacity,
        free(capacity, slots, root),
        slots=tuple(sorted(ready.items())),
        models=near,
        instances=sum(slot.state in BUSY for slot in slots),
        accepting=not (read.get("spec") or {}).get("unschedulable", False),
        labels=labels(read),
    )


def _read(parse: Any, value: object) -> int:
    try:
        return int(parse(value)) if value is not None else 0
    except ValueError:
        return 0


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    except OSError:
        return []


def _any(folder: Path) -> bool:
    try:
        return next(folder.iterdir(), None) is not None
    except OSError:  # a mount whose server has died
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _available_mib(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return 0


def _load_milli(root: Path) -> int:
    words = _text(root / "proc/loadavg").split()
    return int(float(words[0]) * 1000) if words else 0
