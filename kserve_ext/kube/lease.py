"""A Lease of coordination.k8s.io/v1 as the elector (store/elector.py) keeps it.

Field for field what client-go writes, so that a candidate can stand for election against upstream's own processes.
"""

from __future__ import annotations

from datetime import UTC, datetime

from kserve_ext.core.election import Claim, ElectionSpec, LeaseRecord
from kserve_ext.kube.client import AlreadyExists, Client, Conflict, KubeError, KubeObject, NotFound
from kserve_ext.kube.kinds import LEASES
from kserve_ext.store.elector import Away, Outrun


class KubeLease:
    """One object; what else it carries is kept."""

    def __init__(self, client: Client, namespace: str, name: str) -> None:
        self.client = client
        self.namespace = namespace
        self.name = name
        self._lease: KubeObject | None = None  # as last read or written

    async def look(self) -> LeaseRecord | None:
        try:
            self._lease = await self.client.get(LEASES, self.namespace, self.name)
        except NotFound:
            self._lease = None
        except KubeError as error:
            raise Away(str(error)) from error
        return record_of(self._lease)

    async def claim(self, claim: Claim, spec: ElectionSpec) -> LeaseRecord:
        now = micro_time()
        kept = claim.over.acquired if claim.over and claim.keeps_acquired else ""
        return await self._write(
            {
                "holderIdentity": spec.identity,
                "leaseDurationSeconds": int(spec.lease_s),
                "acquireTime": kept or now,
                "renewTime": now,
                "leaseTransitions": claim.transitions,
            }
        )

    async def release(self, over: LeaseRecord) -> None:
        now = micro_time()
        await self._write(
            {
                "holderIdentity": "",
                "leaseDurationSeconds": 1,
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": over.transitions,
            }
        )

    async def _write(self, spec: KubeObject) -> LeaseRecord:
        """Over the version in hand."""
        try:
            if self._lease is None:
                metadata = {"name": self.name, "namespace": self.namespace}
                self._lease = await self.client.create(LEASES, {"metadata": metadata, "spec": spec})
            else:
                whole = {**self._lease, "spec": {**self._lease.get("spec", {}), **spec}}
                self._lease = await self.client.replace(LEASES, whole)
        except (Conflict, AlreadyExists, NotFound) as error:
            raise Outrun(error.message) from error
        except KubeError as error:
            raise Away(str(error)) from error
        record = record_of(self._lease)
        assert record is not None
        return record


def record_of(lease: KubeObject | None) -> LeaseRecord | None:
    if lease is None:
        return None
    spec = lease.get("spec") or {}
    return LeaseRecord(
        version=str(lease["metadata"]["resourceVersion"]),
        holder=str(spec.get("holderIdentity") or ""),
        duration_s=float(spec.get("leaseDurationSeconds") or 0),
        transitions=int(spec.get("leaseTransitions") or 0),
        acquired=str(spec.get("acquireTime") or ""),
    )


def micro_time() -> str:
    """Now as a MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
