"""Which revisions this replica is responsible for: one Lease a bucket, and a Service that leads to its holder.

Names and identities are Knative's (pkg/autoscaler/bucket, statforwarder/leases.go, cmd/autoscaler/leaderelection.go),
so that stock replicas and ours share the buckets and forward to each other during an upgrade. Whoever holds a Lease
points the bucket's Service to itself. Whoever has lost it does nothing any more, but goes on taking statistics until
somebody else is seen to hold it: an API server that is away is no reason to forget. Without leader election (a
StatefulSet) the ordinal says whose a bucket is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from autoscaler_shim.knative.stats.forwarder import Forwarder
from kserve_ext.api.knative.config import LeaderElection
from kserve_ext.core.election import ElectionSpec
from kserve_ext.core.knative.buckets import Buckets, Holder
from kserve_ext.kube.client import AlreadyExists, Client, KubeError, KubeObject, NotFound
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import ENDPOINT_SLICES, ENDPOINTS, LEASES, SERVICES
from kserve_ext.kube.lease import KubeLease
from kserve_ext.kube.queue import WorkQueue
from kserve_ext.store.elector import Elector

log = logging.getLogger(__name__)

PORT = 8080
PORT_NAME = "http"


class LeasedBuckets:
    """Who holds what, by Leases: ours by the electors' word, the others' by what their Leases say."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        identity: Holder,
        election: LeaderElection,
        buckets: Buckets,
        forwarder: Forwarder,
        domain: str,
        changed: Callable[[], None],
    ) -> None:
        """`changed` is told whenever other buckets are held here than before."""
        self._client = client
        self._namespace = namespace
        self._identity = identity
        self._buckets = buckets
        self._forwarder = forwarder
        self._domain = domain
        self._changed = changed
        self.held: set[str] = set()
        #: lost, but nobody else has been seen to hold it yet
        self._kept: set[str] = set()
        self._stopping = False
        self._holders: dict[str, Holder] = {}
        self._leases = Informer(client, LEASES, namespace, on_change=self._lease)
        self._queue: WorkQueue[str] = WorkQueue(self._follow, name="bucket")
        self._electors = {name: self._elector(name, election) for name in buckets.names}

    def owns(self, key: str) -> bool:
        """Whether the revision's bucket is held here, by the clock."""
        return self._leads(self._buckets.owner(key))

    def keeps(self, key: str) -> bool:
        """Whether to keep what is known of the revision: its bucket is held here, or by nobody as far as we know."""
        name = self._buckets.owner(key)
        return name in self.held or name in self._kept

    def term(self, key: str) -> int:
        """Of whoever holds the revision's bucket: a later holder's is higher."""
        return self._electors[self._buckets.owner(key)].term

    async def start(self) -> None:
        self._queue.start()
        self._leases.start()
        for elector in self._electors.values():
            elector.start()

    async def stop(self) -> None:
        """Gives the buckets back, so that others need not wait until the Leases expire."""
        self._stopping = True
        await asyncio.gather(*(elector.stop() for elector in self._electors.values()))
        await self._leases.stop()
        await self._queue.stop()

    # --- inside

    def _leads(self, name: str) -> bool:
        return name in self.held and self._electors[name].leading

    def _elector(self, name: str, election: LeaderElection) -> Elector:
        return Elector(
            KubeLease(self._client, self._namespace, name),
            ElectionSpec(str(self._identity), election.lease_s, election.renew_s, election.retry_s),
            on_gain=self._gained(name),
            on_loss=self._lost(name),
        )

    def _gained(self, name: str) -> Callable[[], None]:
        def gained() -> None:
            log.info("bucket %s is held here", name)
            self.held.add(name)
            self._kept.discard(name)
            self._holders[name] = self._identity
            self._queue.add(name)
            self._changed()

        return gained

    def _lost(self, name: str) -> Callable[[], None]:
        def lost() -> None:
            log.info("bucket %s is no longer held here", name)
            self.held.discard(name)
            ours = str(self._identity)
            seen = {self._electors[name].holder, str(self._holders.get(name, ours))}
            if not self._stopping and seen <= {ours, ""}:
                self._kept.add(name)
            self._queue.add(name)
            self._changed()

        return lost

    def _lease(self, _: KubeObject | None, new: KubeObject | None) -> None:
        if new is None or new["metadata"]["name"] not in self._buckets.names:
            return
        name = str(new["metadata"]["name"])
        identity = str((new.get("spec") or {}).get("holderIdentity") or "")
        if not identity:
            self._electors[name].wake()  # given back
            return
        if identity != str(self._identity) and name in self._kept:
            self._kept.discard(name)
            self._queue.add(name)
            self._changed()
        holder = Holder.parse(identity)
        if holder is None:
            log.warning("Lease %s: holder %r is no autoscaler (<pod>_<ip>)", name, identity)
        elif holder != self._holders.get(name):
            self._holders[name] = holder
            self._queue.add(name)

    async def _follow(self, name: str) -> None:
        """Where the statistics of one bucket go."""
        if self._leads(name):
            await self._forwarder.held_here(name)
            await self._point_service_here(name)
            return
        if name in self._kept:
            return
        holder = self._holders.get(name)
        if holder is not None and holder != self._identity:
            host = f"[{holder.ip}]" if ":" in holder.ip else holder.ip
            service = f"{name}.{self._namespace}.svc.{self._domain}"
            await self._forwarder.held_by(name, (f"ws://{host}:{PORT}", f"ws://{service}:{PORT}"))
        else:
            await self._forwarder.held_by_nobody(name)

    async def _point_service_here(self, name: str) -> None:
        await _ensure(self._client.create(SERVICES, self._service(name)))
        endpoints = self._endpoints(name)
        try:
            await self._client.create(ENDPOINTS, endpoints)
        except AlreadyExists:
            subsets = {"subsets": endpoints["subsets"]}
            await self._client.patch(ENDPOINTS, self._namespace, name, subsets)
        await self._point_slice_here(name)

    async def _point_slice_here(self, name: str) -> None:
        """Later versions of Knative write a slice of this name instead of Endpoints; one that is there must not lead
        to a former holder."""
        addresses = {"endpoints": [{"addresses": [self._identity.ip]}]}
        try:
            await self._client.patch(ENDPOINT_SLICES, self._namespace, name, addresses)
        except NotFound:
            pass
        except KubeError as error:
            if error.status != 403:
                raise
            log.debug("bucket %s: EndpointSlices may not be written here: %s", name, error)

    def _service(self, name: str) -> KubeObject:
        port = {"name": PORT_NAME, "port": PORT, "targetPort": PORT}
        return {
            "metadata": {"name": name, "namespace": self._namespace},
            "spec": {"ports": [port]},
        }

    def _endpoints(self, name: str) -> KubeObject:
        port = {"name": PORT_NAME, "port": PORT, "protocol": "TCP"}
        return {
            "metadata": {"name": name, "namespace": self._namespace},
            "subsets": [{"addresses": [{"ip": self._identity.ip}], "ports": [port]}],
        }


async def _ensure(creation: Awaitable[KubeObject]) -> None:
    with contextlib.suppress(AlreadyExists):
        await creation


class FixedBuckets:
    """One replica of a StatefulSet: bucket i belongs to pod i, whose address is also the bucket's name."""

    def __init__(self, buckets: Buckets, ordinal: int, forwarder: Forwarder) -> None:
        self._buckets = buckets
        self._mine = buckets.names[ordinal]
        self._forwarder = forwarder

    def owns(self, key: str) -> bool:
        return self._buckets.owner(key) == self._mine

    keeps = owns

    def term(self, key: str) -> int:
        """Buckets never change hands."""
        return 0

    async def start(self) -> None:
        for name in self._buckets.names:
            if name == self._mine:
                await self._forwarder.held_here(name)
            else:
                address = name.replace("http://", "ws://", 1).replace("https://", "wss://", 1)
                await self._forwarder.held_by(name, (address,))

    async def stop(self) -> None:
        """Nothing to give back."""
