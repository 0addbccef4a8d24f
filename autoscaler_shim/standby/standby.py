"""Standby pods in one autoscaler replica: puts the parts together, starts and stops them, hands news on between them.

Without the key of the Secret galaxy-peers, or without an agent that answers, revisions start as they do without
standby pods; nothing here stands in the way of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from autoscaler_shim.standby.agents import Agents
from autoscaler_shim.standby.keeper import Keeper
from autoscaler_shim.standby.metrics import StandbyMetrics, Tally
from autoscaler_shim.standby.orders import Orders
from autoscaler_shim.standby.pods import StandbyPods
from autoscaler_shim.standby.saying import Saying
from autoscaler_shim.standby.scales import StandbyScales
from autoscaler_shim.standby.settling import Settling
from autoscaler_shim.standby.shapes import Shapes
from kserve_ext.api.knative.pods import Unplaced
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.knative.pod_autoscaler import Pods
from kserve_ext.core.standby.known import Known
from kserve_ext.kube.client import Client, KubeError, KubeObject
from kserve_ext.kube.events import Events
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import ENDPOINTS
from kserve_ext.kube.peers_key import NoKey, awaited_key, peers_key
from kserve_ext.rpc import Rpc
from kserve_ext.rpc.background import kept_up
from kserve_ext.rpc.mutual_tls import Identity

log = logging.getLogger(__name__)

ACTIVATORS: Final = "activator-service"
KEY_AGAIN_S: Final = 10.0
#: Between looks whether the key is another one; agents look as often, and begin anew with it.
KEY_LOOK_S: Final = 30.0
SWEEP_S: Final = 10.0
#: Between looks whether a pod finds no node.
WAY_S: Final = 2.0
#: Pools are looked at so long after news of slots.
POOLS_S: Final = 0.1
#: Longest wait for the agents' first word, with the key and all.
FIRST_S: Final = 5.0


class Standby:
    """`scales` from the beginning; `start` once informers of the autoscaler have listed, `stop` once."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        name: str,
        activator_port: int,
        deployments: Informer,
        revisions: Informer,
        again: Callable[[str], None],
        owns: Callable[[str], bool],
        counts: Callable[[str], Pods],
        unscheduled: Callable[[], Mapping[str, Unplaced]],
        placed: Callable[[str], bool],
        term: Callable[[str], int],
        identity: Identity | None,
    ) -> None:
        """`revisions`: PodAutoscalers; `again` reconciles one."""
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._activator_port = activator_port
        self._revisions = revisions
        self._owns = owns
        self._term = term
        self.known = Known()
        self.tally = Tally()
        self.agents = Agents(client, namespace, self.known, self._changed)
        self.pods = StandbyPods(client, self.known, self._changed, self._pool_changed)
        self.shapes = Shapes(client, deployments, lambda revision: self.scales.concerned(revision))
        self.events = Events(client, "kserve-galaxy-autoscaler", self._busy)
        self.saying = Saying(self.known, self.events, self._autoscaler_of)
        self.settling = Settling(client, self.known, self.pods)
        self.orders = Orders(
            self.known, self.agents, self.tally, self.saying, again, term, lambda: self._activators
        )
        self.scales = StandbyScales(
            client,
            deployments,
            again,
            owns,
            self.known,
            self.orders,
            self.pods,
            self.shapes,
            self.settling,
            self.tally,
            counts,
            lambda pool: self.keeper.short(pool),
            lambda pool: self.keeper.lack(pool),
            self.saying,
        )
        self.keeper = Keeper(
            client,
            self.known,
            self.pods,
            self.shapes,
            self.tally,
            owns,
            self._reachable,
            self._busy,
            self.scales.concerned,
            unscheduled,
            placed,
            self.agents.rooms,
        )
        self.metrics = StandbyMetrics(
            self.tally, self.saying.wakes, self.keeper.figures, self.agents.figures, self._figures
        )
        self._activators: tuple[str, ...] = ()
        self._endpoints = Informer(
            client, ENDPOINTS, namespace, fields=f"metadata.name={ACTIVATORS}", on_change=self._moved
        )
        self._key = b""
        self._rpc: Rpc | None = None
        self._met = asyncio.Event()  # the agents, or nobody within a moment
        self._tasks: list[asyncio.Task[None]] = []
        self._pools_due: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Returns when it is known whether pods can be held, and whose slots are whose, or after a moment."""
        for informer in (self.pods.informer, self._endpoints):
            informer.start()
        await asyncio.gather(*(i.synced.wait() for i in (self.pods.informer, self._endpoints)))
        await self.settling.begin()
        self.events.start()
        kept = {
            "meeting node agents": self._meet_agents,
            "sweeping standby pods": self._sweep,
            "looking for pods without a node": self._give_way,
            "looking at the peers' key": self._look_at_key,
        }
        self._tasks = [asyncio.create_task(kept_up(what, run), name=what) for what, run in kept.items()]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._met.wait(), FIRST_S)
        self.keeper.start()

    async def stop(self) -> None:
        if self._pools_due is not None:
            self._pools_due.cancel()
        await self.keeper.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.events.stop()
        await self.agents.stop()
        await self.shapes.stop()
        await self.settling.stop()
        for informer in (self.pods.informer, self._endpoints):
            await informer.stop()
        if self._rpc is not None:
            await self._rpc.close()

    def deployment_changed(self, old: KubeObject | None, new: KubeObject | None) -> None:
        for pool in self.shapes.take(old, new):
            self.keeper.add(pool)

    def revision_changed(self, key: str) -> None:
        """Its PodAutoscaler: whether requests reach it may be otherwise."""
        shape = self.shapes.of(RevisionKey(key))
        if shape is not None and shape.pool is not None:
            self.keeper.add(shape.pool.key)

    def responsibility_changed(self) -> None:
        self.keeper.add_all()

    # --- inside

    def _busy(self) -> bool:
        """A burst is under way."""
        return self.scales.waking() or self.known.rush(time.monotonic())

    async def _meet_agents(self) -> None:
        if self._rpc is None:  # else a former try has failed behind this
            meanwhile = "no standby pods are taken before there is the key of nodes' agents"
            self._key = await awaited_key(self._client, self._namespace, meanwhile, again_s=KEY_AGAIN_S)
            self._rpc = Rpc(self._name, self._key, identity=self._identity)
        await self.agents.start(self._rpc)
        self._met.set()
        await asyncio.get_running_loop().create_future()

    async def _look_at_key(self) -> None:
        while True:
            await asyncio.sleep(KEY_LOOK_S)
            if not self._key:
                continue
            try:
                key = await peers_key(self._client, self._namespace, make=False)
            except NoKey as error:
                log.warning("the key that nodes' agents are spoken to with stays: %s", error)
                continue
            if key != self._key and self._rpc is not None:
                log.info(
                    "the key in the Secret galaxy-peers is another one: nodes' agents are spoken to with it"
                )
                former, self._key = self._rpc, key
                self._rpc = Rpc(self._name, key, identity=self._identity)
                self.agents.speak_by(self._rpc)
                await former.close()

    async def _sweep(self) -> None:
        """What belongs to revisions that are no more; and what memory keeps of what is gone."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.known.forget()
            self.keeper.forget()
            self.orders.forget()
            self.saying.forget(self._exists)
            self.tally.forget(set(self.known.pods))
            await self.settling.look()
            free, delete = self.known.strays(self._exists)
            for uid in free:
                seen = self.known.slots[uid]
                if self._owns(seen.slot.revision):
                    log.info("%s is no more: its standby pod %s is free", seen.slot.revision, seen.slot.pod)
                    term = self._term(seen.slot.revision)
                    self.agents.free(seen, seen.slot.revision, term, lambda _: None)
            for uid in delete:
                pod = self.known.pods.get(uid)
                if pod is not None and self._owns(pod.revision):  # it may have gone while others were deleted
                    log.info("%s is no more: its pod %s is deleted", pod.revision, pod.name)
                    with contextlib.suppress(KubeError):
                        await self.pods.delete(uid)
            self.keeper.add_all()

    async def _give_way(self) -> None:
        while True:
            await asyncio.sleep(WAY_S)
            with contextlib.suppress(KubeError):
                await self.keeper.give_way()

    def _changed(self, revisions: set[RevisionKey]) -> None:
        for revision in revisions:
            self.scales.concerned(revision)
        if self._pools_due is None:  # in a burst news come by the hundred a second
            self._pools_due = asyncio.get_running_loop().call_later(POOLS_S, self._look_at_pools)

    def _look_at_pools(self) -> None:
        self._pools_due = None
        self.keeper.add_all()

    def _pool_changed(self, pool: str) -> None:
        self.keeper.add(pool)

    def _moved(self, old: KubeObject | None, new: KubeObject | None) -> None:
        subsets: list[dict[str, Any]] = (new or {}).get("subsets") or []
        fields = ("addresses", "notReadyAddresses")
        hosts = sorted(
            {
                str(address["ip"])
                for subset in subsets
                for field in fields
                for address in subset.get(field) or ()
            }
        )
        self._activators = tuple(
            f"[{host}]:{self._activator_port}" if ":" in host else f"{host}:{self._activator_port}"
            for host in hosts
        )

    def _autoscaler_of(self, revision: RevisionKey) -> KubeObject | None:
        namespace, _, name = revision.partition("/")
        return self._revisions.get(namespace, name)

    def _exists(self, revision: RevisionKey) -> bool:
        return self._autoscaler_of(revision) is not None

    def _reachable(self, revision: RevisionKey) -> bool:
        pa = self._autoscaler_of(revision)
        return pa is not None and (pa.get("spec") or {}).get("reachability") != "Unreachable"

    def _figures(self) -> dict[str, float]:
        return {
            "agents": len(self.agents.addrs),
            "can_hold": self.settling.can_hold,
            "agents_heard": self.agents.heard,
            "events_told": self.events.told,
            "events_dropped": self.events.dropped,
            "unfit": sum(bool(shape.unfit) for shape in self.shapes.all()),
        }
