"""Knative's ConfigMaps as they are in force: read again whenever they change, the last good one kept.

A ConfigMap that can't be read as a whole changes nothing, and the log says which key is wrong and what would be
right. At the start nothing can stay as it was: BadConfig is raised if it decides anything, as Knative's ends. One
that is missing means Knative's defaults. Leader election and network are read once, at the start, as Knative reads
them: buckets are agreed on between replicas, and a mesh doesn't come and go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from kserve_ext.api.knative import config as knative_config
from kserve_ext.api.knative.conditions import text_map
from kserve_ext.api.knative.config import ClusterConfig
from kserve_ext.api.knative.observability import observability
from kserve_ext.api.problems import Findings
from kserve_ext.kube.client import Client, KubeObject
from kserve_ext.kube.config_map import at_start, in_force
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import CONFIG_MAPS

log = logging.getLogger(__name__)

AUTOSCALER: Final = "config-autoscaler"
DEPLOYMENT: Final = "config-deployment"
NETWORK: Final = "config-network"
#: Fields whose defaults would be no harmless stand-ins.
_DECISIVE: Final = ("autoscaler", "progress_deadline_s", "network", "leader_election")


class ConfigStore:
    def __init__(
        self,
        client: Client,
        namespace: str,
        changed: Callable[[], None],
        leader_election: str = "config-leader-election",
        logging_config: str = "config-logging",
        observability_config: str = "config-observability",
    ) -> None:
        """The last three are names of ConfigMaps that the environment may change."""
        self.current = ClusterConfig()
        self._namespace = namespace
        self._changed = changed
        #: name of the ConfigMap, field of ClusterConfig, and who reads it
        self._readers: dict[str, tuple[str, Callable[[Any, Findings], Any]]] = {
            AUTOSCALER: ("autoscaler", knative_config.autoscaler),
            DEPLOYMENT: ("progress_deadline_s", knative_config.progress_deadline_s),
            NETWORK: ("network", knative_config.network),
            leader_election: ("leader_election", knative_config.leader_election),
            logging_config: ("log_level", knative_config.log_level("autoscaler")),
            observability_config: ("observability", observability),
        }
        self._fixed = {NETWORK, leader_election}
        self._started = False
        self.rejected = 0
        self.informer = Informer(client, CONFIG_MAPS, namespace, on_change=self._take)

    async def start(self) -> None:
        """Returns when all have been read once."""
        self.informer.start()
        await self.informer.synced.wait()
        self._started = True
        for name, (field, read) in self._readers.items():
            found = self.informer.get(self._namespace, name)
            if found is not None and field in _DECISIVE:
                at_start(f"{self._namespace}/{name}", text_map(found.get("data")), read)
            if found is None:
                log.warning("ConfigMap %s/%s: not there, Knative's defaults hold", self._namespace, name)

    async def stop(self) -> None:
        await self.informer.stop()

    def _take(self, old: KubeObject | None, new: KubeObject | None) -> None:
        name = str((new or old or {})["metadata"]["name"])
        if name not in self._readers:
            return
        data = text_map((new or {}).get("data"))
        if self._started and name in self._fixed:
            if data != text_map((old or {}).get("data")):
                log.info("ConfigMap %s/%s has changed; it is read at the next start", self._namespace, name)
            return
        field, read = self._readers[name]
        value, taken = in_force(f"{self._namespace}/{name}", data, read, getattr(self.current, field))
        self.rejected += not taken
        if value != getattr(self.current, field):
            self.current = replace(self.current, **{field: value})
            log.info("ConfigMap %s/%s: in force", self._namespace, name)
            self._changed()
