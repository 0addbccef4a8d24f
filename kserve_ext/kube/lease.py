"""Holds a Lease of coordination.k8s.io/v1 as long as it can, and says when it begins and ceases to lead.

The deciding is core/election.py's; this reads, writes and keeps time. Field for field what client-go writes, so that
it can stand for election against upstream's own processes. Losing calls on_loss before anybody else may lead; a clean
stop gives the Lease back, so that the next one needn't wait for it to expire.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime

from kserve_ext.core.election import Claim, Election, ElectionSpec, LeaseRecord
from kserve_ext.kube.client import AlreadyExists, Client, Conflict, KubeError, KubeObject, NotFound
from kserve_ext.kube.kinds import LEASES

log = logging.getLogger(__name__)

RELEASE_TIMEOUT_S = 5.0


class Elector:
    """One candidate for one Lease; start() and stop()."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        name: str,
        identity: str,
        on_gain: Callable[[], None],
        on_loss: Callable[[], None],
        lease_s: float = 60.0,
        renew_s: float = 40.0,
        retry_s: float = 10.0,
    ) -> None:
        self.client = client
        self.namespace = namespace
        self.name = name
        self.on_gain = on_gain
        self.on_loss = on_loss
        self._election = Election(ElectionSpec(identity, lease_s, renew_s, retry_s))
        self._lease: KubeObject | None = None  # as last read or written
        self._may_hold = False  # whether a claim was sent that others may have seen
        self._told = False  # whether on_gain was the last that we called
        self._task: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._woken = asyncio.Event()
        self._problem = ""

    @property
    def leading(self) -> bool:
        """Right now, by the clock: ask before an act that two must not do. Of a lapse that is noticed here (the
        process was stopped or throttled, so the alarm is late) on_loss is told first."""
        if self._told and not self._election.leads(time.monotonic()):
            self._settle()
        return self._told

    @property
    def holder(self) -> str:
        """Whose name the Lease bore when last seen; "" = nobody's."""
        return self._election.seen.holder if self._election.seen else ""

    def wake(self) -> None:
        """Tries at once: somebody has seen that the Lease was given back."""
        self._woken.set()

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"lease {self.name}")

    async def stop(self) -> None:
        """Ceases to lead, then gives the Lease back."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait({task})
        self._election.lost()
        self._settle()
        if self._may_hold:
            with contextlib.suppress(KubeError, TimeoutError):
                async with asyncio.timeout(RELEASE_TIMEOUT_S):
                    await self._release()

    # --- inside

    async def _run(self) -> None:
        spec = self._election.spec
        while True:
            self._woken.clear()
            try:
                async with asyncio.timeout(spec.renew_s / 4):  # so that a holder may miss some
                    await self._try()
                self._problem = ""
            except (KubeError, TimeoutError) as error:
                self._complain(error)
            except Exception:  # an answer that isn't as it should be
                log.exception("lease %s: a try failed", self.name)
            self._settle()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), self._election.next_try_s(random.random()))

    async def _try(self) -> None:
        """One try to get or renew the Lease. The holder writes without reading, over the version it wrote last."""
        if self._election.leads(time.monotonic()) and self._lease is not None:
            try:
                await self._claim()
            except (Conflict, NotFound) as error:
                log.info("lease %s: has changed, look again: %s", self.name, error.message)
            else:
                return
        await self._look()
        with contextlib.suppress(Conflict, AlreadyExists):  # another was faster
            await self._claim()

    async def _look(self) -> None:
        try:
            self._lease = await self.client.get(LEASES, self.namespace, self.name)
        except NotFound:
            self._lease = None
        self._election.observe(record_of(self._lease), time.monotonic())

    async def _claim(self) -> None:
        sent_at = time.monotonic()
        act = self._election.decide(sent_at)
        if not isinstance(act, Claim):
            return
        now = micro_time()
        spec = {
            "holderIdentity": self._election.spec.identity,
            "leaseDurationSeconds": int(self._election.spec.lease_s),
            "acquireTime": act.over.acquired
            if act.over and act.keeps_acquired and act.over.acquired
            else now,
            "renewTime": now,
            "leaseTransitions": act.transitions,
        }
        self._may_hold = True
        self._lease = await self._write(spec)
        record = record_of(self._lease)
        assert record is not None
        self._election.claimed(record, sent_at, time.monotonic())

    async def _release(self) -> None:
        while True:
            await self._look()
            seen = self._election.seen
            if seen is None or seen.holder != self._election.spec.identity:
                return
            now = micro_time()
            spec = {
                "holderIdentity": "",
                "leaseDurationSeconds": 1,
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": seen.transitions,
            }
            with contextlib.suppress(Conflict):  # a renewal that was cut short on its way still arrived
                await self._write(spec)
                log.info("lease %s: given back", self.name)
                return

    async def _write(self, spec: KubeObject) -> KubeObject:
        """Over the version in hand, keeping what else the object carries."""
        if self._lease is None:
            metadata = {"name": self.name, "namespace": self.namespace}
            return await self.client.create(LEASES, {"metadata": metadata, "spec": spec})
        return await self.client.replace(
            LEASES, {**self._lease, "spec": {**self._lease.get("spec", {}), **spec}}
        )

    def _settle(self) -> None:
        """Tells what has changed, and sets the alarm for the moment when it changes by itself."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        now = time.monotonic()
        leads = self._election.leads(now)
        if leads:
            delay = self._election.gives_up_at() - now
            self._expiry = asyncio.get_running_loop().call_later(delay, self._settle)
        if leads == self._told:
            return
        self._told = leads
        log.info("lease %s: %s", self.name, "leads" if leads else "leads no more")
        try:
            (self.on_gain if leads else self.on_loss)()
        except Exception:
            log.exception(
                "lease %s: taking in that this process %s failed", self.name, "leads" if leads else "lost it"
            )

    def _complain(self, error: Exception) -> None:
        problem = str(error) or "no answer in time"
        if problem != self._problem:
            self._problem = problem
            log.warning("lease %s: %s; trying on", self.name, problem)


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
