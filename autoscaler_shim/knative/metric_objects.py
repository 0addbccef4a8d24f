"""Metric objects: what they ask for is collected, and their status says whether that works.

As pkg/reconciler/metric. Those of our own PodAutoscalers say nothing new, since the reconciler has configured the
same collection already; others (of another autoscaler class) are served here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from autoscaler_shim.knative.stats.collector import Collector
from autoscaler_shim.knative.writer import Writer
from kserve_ext.api.knative import children as knative_children
from kserve_ext.api.knative.children import Trouble
from kserve_ext.api.knative.conditions import text_map
from kserve_ext.api.knative.pa import REVISION_LABEL
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import METRICS
from kserve_ext.kube.queue import WorkQueue

log = logging.getLogger(__name__)


class MetricObjects:
    def __init__(
        self,
        metrics: Informer,
        collector: Collector,
        writer: Writer,
        owns: Callable[[str], bool],
        keeps: Callable[[str], bool],
        is_ours: Callable[[str], bool],
    ) -> None:
        """`is_ours`: whether the reconciler configures the collection of this key itself."""
        self._metrics = metrics
        self._collector = collector
        self._writer = writer
        self._owns = owns
        self._keeps = keeps
        self._is_ours = is_ours
        self.queue: WorkQueue[str] = WorkQueue(self.reconcile, name="metric")

    def start(self) -> None:
        self.queue.start()

    async def stop(self) -> None:
        await self.queue.stop()

    def add(self, key: str) -> None:
        self.queue.add(key)

    def add_all(self) -> None:
        for namespace, name in self._metrics.objects:
            self.queue.add(f"{namespace}/{name}")

    async def reconcile(self, key: str) -> None:
        namespace, _, name = key.partition("/")
        metric = self._metrics.get(namespace, name)
        if metric is None or not self._keeps(key):
            if not self._is_ours(key):
                self._collector.remove(key)
            return
        if not self._owns(key):
            return
        trouble = self._collect(key, metric)
        self._writer.put_status(METRICS, metric, knative_children.metric_status(metric, trouble, time.time()))

    def _collect(self, key: str, metric: dict[str, object]) -> Trouble | None:
        windows = knative_children.windows(metric)
        if isinstance(windows, str):
            log.warning("Metric %s: %s", key, windows)
            return Trouble("CollectionFailed", f"Failed to reconcile metric collection: {windows}")
        namespace = key.partition("/")[0]
        metadata = metric["metadata"]
        labels = text_map(metadata.get("labels") if isinstance(metadata, dict) else None)
        revision = labels.get(REVISION_LABEL, "")
        if windows.target and not revision:
            what = f"metadata.labels: {REVISION_LABEL} is missing, so no pods can be found; add it"
            log.warning("Metric %s: %s", key, what)
            return Trouble("CollectionFailed", f"Failed to reconcile metric collection: {what}")
        if not self._is_ours(key):
            self._collector.configure(key, windows, f"{namespace}/{revision}")
        return self._collector.trouble(key)
