"""Which processes make up a cluster, and how each is started. Decides command lines only."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

from kserve_ext.cli.embedded import elastic

ROOT: Final = Path(__file__).resolve().parents[3]
#: Part -> its key in cluster.json's counts; in the order of starting.
KINDS: Final = ("controller", "objects", "cluster-mgr", "schedule", "dispatch", "node")


class Part(NamedTuple):
    id: str
    kind: str
    argv: tuple[str, ...]


def parts(cluster: dict[str, Any], data: Path) -> list[Part]:
    """Every part, in order of starting."""
    found = []
    for kind in KINDS:
        for number in range(int(cluster["counts"].get(kind, 1))):
            found.append(_part(kind, f"{kind}-{number}", cluster, data))
    return found


def _part(kind: str, part_id: str, cluster: dict[str, Any], data: Path) -> Part:
    module = ("activator_replacement",) if kind == "dispatch" else ("autoscaler_shim", kind)
    controllers = str(cluster["controller"]).split(",")
    host = controllers[0].rpartition(":")[0]
    argv = [sys.executable, "-m", *module, "--id", part_id, "--data", str(data)]
    argv += ["--controller", str(cluster["controller"]), "--host", host]
    if kind == "controller":
        port = controllers[int(part_id.rpartition("-")[2])].rpartition(":")[2]
        argv += ["--port", port, *elastic.controller_args(cluster)]
    elif kind == "dispatch":
        argv += ["--http", str(cluster["http"]), "--domain", str(cluster["domain"])]
    elif kind == "node":
        size = cluster["node"]
        argv += ["--cpu", f"{size['cpu_milli']}m", "--memory", f"{size['memory_mib']}Mi"]
        argv += ["--gpus", str(size["gpus"]), *elastic.node_args(cluster)]
        labels = cluster.get("labels", {}).get(part_id, {})
        if labels:
            argv += ["--labels", ",".join(f"{key}={value}" for key, value in sorted(labels.items()))]
    return Part(part_id, kind, tuple(argv))


def environment() -> dict[str, str]:
    """Of every part, and so of every instance: our interpreter first in PATH, our packages importable."""
    env = dict(os.environ)
    env["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), env.get("PATH", os.defpath)))
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH", ""))))
    env["PYTHONUNBUFFERED"] = "1"
    return env
