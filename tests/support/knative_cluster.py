"""A cluster with a stock Knative Serving, as far as `galaxy install` sees it: a fake API server, and some Kubernetes.

Applies partial Deployments by strategic merge, answers access reviews, and rolls Deployments out, or not, as a test
says. Runs on a thread of its own, so that commands can be invoked as a person does.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner, Result

from kserve_ext.cli.__main__ import main
from kserve_ext.cli.knative.kustomize import MANIFESTS
from kserve_ext.cli.knative.merging import merge
from kserve_ext.kube.kinds import DAEMON_SETS, DEPLOYMENTS, PODS, Kind
from tests.support.api_objects import Change, Obj
from tests.support.api_server import ApiServer, Target

PLACE = "knative-serving"
STRATEGIC = ("application/apply-patch+yaml", "application/strategic-merge-patch+json")


class KnativeServer(ApiServer):
    def __init__(self, tls: ssl.SSLContext | None) -> None:
        super().__init__(tls)
        self.denied: set[tuple[str, str]] = set()  # verb, plural
        self.stuck: set[str] = set()  # Deployments whose new pods never become ready

    def _answer(self, request: Any, body: Any) -> tuple[int, Obj]:
        if request.path.endswith("/selfsubjectaccessreviews"):
            asked = body["spec"]["resourceAttributes"]
            return 201, {"status": {"allowed": (asked["verb"], asked["resource"]) not in self.denied}}
        return super()._answer(request, body)

    def _patch(self, target: Target, patch: Any, content_type: str) -> tuple[int, Obj]:
        known = target.key in self.objects.of(target.kind)
        if target.kind.plural != "deployments" or content_type not in STRATEGIC or not known:
            return super()._patch(target, patch, content_type)
        return 200, self._replace(target, merge(self.objects.get(target.kind, target.key), patch))

    def _changed(self, kind: Kind, change: Change) -> None:
        super()._changed(kind, change)
        if kind.plural == "daemonsets" and change.new is not None and not change.deleted:
            counts = dict.fromkeys(("desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable"), 3)
            status = {"observedGeneration": change.new["metadata"]["generation"], **counts}
            if change.new.get("status") != status:
                self.put(DAEMON_SETS, {**change.new, "status": status})
        if kind.plural == "deployments" and change.new is not None and not change.deleted:
            metadata = change.new["metadata"]
            observed = (change.new.get("status") or {}).get("observedGeneration")
            if observed != metadata["generation"] and metadata["name"] not in self.stuck:
                self.put(DEPLOYMENTS, {**change.new, "status": rolled_out(change.new)})


def rolled_out(deployment: Obj) -> Obj:
    count = deployment["spec"].get("replicas", 1)
    counts = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas"), count)
    return {"observedGeneration": deployment["metadata"]["generation"], **counts}


def stock(name: str) -> Obj:
    """Knative's own Deployment, as a release has it."""
    deployment: Obj = yaml.safe_load((MANIFESTS / "base" / "knative" / f"{name}.yaml").read_text())
    deployment["spec"].setdefault("replicas", 1)
    deployment["spec"]["template"]["spec"]["containers"][0]["image"] = f"stock.example/{name}@sha256:0"
    return deployment


class KnativeCluster:
    """`cluster("install", ...)` is `galaxy install ...` against it."""

    def __init__(self, folder: Path, tls: ssl.SSLContext | None = None) -> None:
        self.server = KnativeServer(tls)
        self.loop = asyncio.new_event_loop()
        self._folder = folder
        self._thread = threading.Thread(target=self.loop.run_forever, name="api server")
        self._thread.start()
        self.do(self.server.up())
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": self.server.url}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        }
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def __call__(self, *args: str) -> Result:
        environment = {"KUBECONFIG": str(self.kubeconfig), "GALAXY_HOME": str(self._folder / "none")}
        return CliRunner().invoke(main, args, env=environment, prog_name="galaxy")

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(100)

    def put(self, kind: Kind, obj: Obj) -> None:
        async def now() -> None:
            self.server.put(kind, obj)

        self.do(now())

    def install_knative(self) -> None:
        for name in ("activator", "autoscaler"):
            self.put(DEPLOYMENTS, stock(name))

    def deployment(self, name: str) -> Obj:
        found = self.get(DEPLOYMENTS, PLACE, name)
        assert found is not None
        return found

    def get(self, kind: Kind, namespace: str, name: str) -> Obj | None:
        async def now() -> Obj | None:
            return self.server.get(kind, namespace, name)

        found: Obj | None = self.do(now())
        return found

    def image(self, name: str) -> str:
        return str(self.deployment(name)["spec"]["template"]["spec"]["containers"][0]["image"])

    def add_failing_pod(self, app: str, reason: str) -> None:
        waiting = {"state": {"waiting": {"reason": reason, "message": "no such image"}}}
        metadata = {"name": f"{app}-x", "namespace": PLACE, "labels": {"app": app}}
        self.put(PODS, {"metadata": metadata, "status": {"containerStatuses": [waiting]}})

    def close(self) -> None:
        self.do(self.server.down())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
