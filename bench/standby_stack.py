"""The e2e stack as bench-burst needs it: whose activator and autoscaler, with which limits, and standby or not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.peers import build, light_node, light_server
from bench.zero_stack import Marks, use
from e2e.stack import implementations, knative, network
from e2e.stack.api import documents, wait_until
from e2e.stack.cluster import Cluster
from e2e.stack.place import CLONE, SYSTEM_NAMESPACE
from kserve_ext.api.standby import names

#: Name -> (activator, autoscaler).
IMPLEMENTATIONS = {
    "shipped": ("stock", "stock"),
    "unlimited": ("stock", "stock"),
    "ours-plain": ("ours", "ours"),
    "ours-standby": ("ours", "ours"),
}
POOL_S = 300.0
_COMPONENT = CLONE / "manifests" / "components" / "standby"
_UNLIMITED_ARGS = ["--kube-api-qps=2000", "--kube-api-burst=4000"]


class Setting:
    def __init__(self, stack: Cluster) -> None:
        self._stack = stack
        self._now = ""
        unlimited = build.unlimited_autoscaler()
        if unlimited is None:
            raise SystemExit("go not found: Knative's autoscaler without limits is built from its module")
        self._unlimited = unlimited
        implementations.grant(stack.api)
        self._agents = [obj for obj in documents(_COMPONENT) if obj["kind"] == "DaemonSet"]
        for agent in self._agents:  # where all standby pods are
            spec = agent["spec"]["template"]["spec"]
            spec["nodeSelector"] = light_node.LABEL
            spec["tolerations"].append(light_node.TAINT)
        stack.api.apply_all(
            obj
            for obj in documents(_COMPONENT)
            if obj["kind"] not in ("DaemonSet", "Deployment", "NetworkPolicy", "Component")
        )

    def marking(self, model: Callable[[str], Path], most: int) -> Callable[[str], Marks]:
        """`model` makes a Service's file; `most`: size of the pool."""
        annotations = {
            names.ENGINE: "galaxy",
            names.SIZE: str(most),
            names.ZYGOTE: light_server.PACKAGE,
        }
        return lambda name: Marks(annotations, ("--model", str(model(name))))

    def use(self, name: str) -> None:
        """That implementation, rolled out; no standby pod is left of another."""
        if name == self._now:
            return
        api, standby, unlimited = self._stack.api, name == "ours-standby", name == "unlimited"
        container: dict[str, Any] = {
            "name": "autoscaler",
            "command": [str(self._unlimited)] if unlimited else None,
        }
        if standby:
            container["env"] = [{"name": "GALAXY_STANDBY", "value": "on"}]
        else:
            container["env"] = [{"name": "GALAXY_STANDBY", "value": "off"}]
        self._patch("autoscaler", container)
        threads = {"name": "K_THREADS_PER_CONTROLLER", "value": "32" if unlimited else "2"}
        args = _UNLIMITED_ARGS if unlimited else []
        self._patch("controller", {"name": "controller", "args": args, "env": [threads]})
        use(self._stack, *IMPLEMENTATIONS[name])
        knative.wait_rolled_out(api, "controller")
        if standby:
            api.apply_all(self._agents)
        else:
            for agent in self._agents:
                api.delete("apps/v1", "DaemonSet", SYSTEM_NAMESPACE, agent["metadata"]["name"])
            for pod in self._pods():
                api.delete("v1", "Pod", pod["metadata"]["namespace"], pod["metadata"]["name"], 0)
        self._now = name

    def wait_standing_by(self, count: int, seconds: float) -> None:
        """As many slots as the pool is to have, as their agent counts them."""
        if self._now == "ours-standby":
            found: list[float] = []

            def full() -> bool:
                found.append(self._ready_slots())
                return found[-1] >= count

            wait_until(
                f"{count} standby pods", full, seconds, 0.5, detail=lambda: f"{found[-1]:.0f} are ready"
            )

    def counters(self) -> dict[str, float]:
        """What the autoscaler has counted of standby pods; none where it has no part of that."""
        found: dict[str, float] = {}
        if self._now == "ours-standby":
            for pod in self._stack.api.list("v1", "Pod", SYSTEM_NAMESPACE):
                if (pod["metadata"].get("labels") or {}).get("app") == "autoscaler":
                    for line in self._metrics(pod, 9090):
                        name, _, value = line.rpartition(" ")
                        if name.startswith("galaxy_standby_") and "_total" in name and "idle" not in name:
                            short = name.removeprefix("galaxy_standby_").replace("_total", "")
                            found[short] = found.get(short, 0.0) + float(value)
        return found

    def _ready_slots(self) -> float:
        ready = 0.0
        for pod in self._stack.api.list("v1", "Pod", SYSTEM_NAMESPACE):
            agent = (pod["metadata"].get("labels") or {}).get(names.COMPONENT_LABEL) == names.AGENT_COMPONENT
            if agent and pod["spec"].get("nodeName") == light_node.NODE:
                for line in self._metrics(pod, 9191):
                    if line.startswith("galaxy_standby_slots{") and 'state="ready"' in line:
                        ready += float(line.rpartition(" ")[2])
        return ready

    def _metrics(self, pod: Mapping[str, Any], port: int) -> list[str]:
        """Asked in the node's namespace, where its address is."""
        address = (pod.get("status") or {}).get("podIP")
        if not address:
            return []
        url = f"http://{address}:{port}/metrics"
        asked = network.command(self._stack.place.node, ["curl", "-s", "-m", "5", url])
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()

    def _pods(self) -> list[dict[str, Any]]:
        found = self._stack.api.list("v1", "Pod", "default")
        return [pod for pod in found if names.POOL_LABEL in (pod["metadata"].get("labels") or {})]

    def _patch(self, deployment: str, container: dict[str, Any]) -> None:
        patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
        self._stack.api.patch("apps/v1", "Deployment", SYSTEM_NAMESPACE, deployment, patch, strategic=True)
