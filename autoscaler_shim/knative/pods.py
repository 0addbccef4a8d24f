"""The pods of all revisions, as an informer shows them: how many are in which state, and which can be scraped."""

from __future__ import annotations

from collections.abc import Callable

from kserve_ext.api.knative import pods as knative_pods
from kserve_ext.api.knative.pods import PodFact, Unplaced
from kserve_ext.core.knative.pod_autoscaler import Pods
from kserve_ext.core.knative.sampling import Pod
from kserve_ext.kube.client import Client, KubeObject
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import PODS

#: The label that all pods of revisions have.
SELECTOR = "serving.knative.dev/revisionUID"


class PodIndex:
    def __init__(self, client: Client, changed: Callable[[str], None]) -> None:
        """`changed` is told the revision (namespace/name) of which a pod is another than before."""
        self._changed = changed
        #: by revision, then by pod
        self._facts: dict[str, dict[str, PodFact]] = {}
        #: By namespace/name.
        self._unscheduled: dict[str, Unplaced] = {}
        self.informer = Informer(client, PODS, labels=SELECTOR, on_change=self._take, keep=knative_pods.slim)

    def counts(self, revision: str) -> Pods:
        return knative_pods.count(self._facts.get(revision, {}).values())

    def scrapable(self, revision: str) -> list[Pod]:
        return knative_pods.scrapable(self._facts.get(revision, {}).values())

    def unscheduled(self) -> dict[str, Unplaced]:
        """By namespace/name: those that no node has room for, and that are to be."""
        return self._unscheduled

    def placed(self, pod: str) -> bool:
        """Whether this one (namespace/name) is there, and has a node."""
        namespace, _, name = pod.partition("/")
        found = self.informer.get(namespace, name)
        fact = None if found is None else knative_pods.fact(found)
        return fact is not None and fact.unplaced is None and not fact.terminating

    def _take(self, old: KubeObject | None, new: KubeObject | None) -> None:
        before = knative_pods.fact(old) if old else None
        after = knative_pods.fact(new) if new else None
        if before == after:
            return
        metadata = (new or old or {})["metadata"]
        name = metadata["name"]
        pod = f"{metadata['namespace']}/{name}"
        self._unscheduled.pop(pod, None)
        if after is not None and after.unplaced is not None and not after.terminating:
            self._unscheduled[pod] = after.unplaced
        if before is not None:
            siblings = self._facts.get(before.revision, {})
            siblings.pop(name, None)
            if not siblings:
                self._facts.pop(before.revision, None)
        if after is not None:
            self._facts.setdefault(after.revision, {})[name] = after
        for revision in {fact.revision for fact in (before, after) if fact is not None}:
            self._changed(revision)
