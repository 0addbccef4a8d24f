"""Carries out a leader election: claims and renews the lease, says when this process begins and ceases to lead.

The deciding is core/election.py's; where the lease is kept is a LeaseKeeper's (kube/lease.py, store/lease.py); this
keeps time. Losing calls on_loss before anybody else may lead; a clean stop gives the lease back, so that the next one
needn't wait for it to expire.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import Protocol

from kserve_ext.core.election import Claim, Election, ElectionSpec, LeaseRecord

log = logging.getLogger(__name__)

RELEASE_TIMEOUT_S = 5.0


class Outrun(Exception):
    """Another wrote the lease since it was seen."""


class Away(Exception):
    """Whoever keeps the lease did not answer."""


class LeaseKeeper(Protocol):
    """Where one lease is kept. Everything raises Away; a write that isn't over what was seen raises Outrun."""

    name: str

    async def look(self) -> LeaseRecord | None: ...

    async def claim(self, claim: Claim, spec: ElectionSpec) -> LeaseRecord: ...

    async def release(self, over: LeaseRecord) -> None: ...


class Elector:
    """One candidate for one lease; start() and stop()."""

    def __init__(
        self,
        keeper: LeaseKeeper,
        spec: ElectionSpec,
        on_gain: Callable[[], None],
        on_loss: Callable[[], None],
    ) -> None:
        self.keeper = keeper
        self.name = keeper.name
        self.on_gain = on_gain
        self.on_loss = on_loss
        self._election = Election(spec)
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
        """Whose name the lease bore when last seen; "" = nobody's."""
        return self._election.seen.holder if self._election.seen else ""

    @property
    def term(self) -> int:
        """How often the lease had changed hands when last seen: each holder has its own."""
        return self._election.seen.transitions if self._election.seen else 0

    def wake(self) -> None:
        """Tries at once: somebody has seen that the lease was given back."""
        self._woken.set()

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"lease {self.name}")

    def lapse(self) -> None:
        """Ceases to lead: somebody else acts as the leader, whatever the lease says."""
        self._election.lost()
        self._settle()

    async def stop(self) -> None:
        """Ceases to lead, then gives the lease back."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait({task})
        self.lapse()
        if self._may_hold:
            with contextlib.suppress(Away, TimeoutError):
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
            except (Away, TimeoutError) as error:
                self._complain(error)
            except Exception:  # an answer that isn't as it should be
                log.exception("lease %s: a try failed", self.name)
            self._settle()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._election.next_try_s(random.random())):
                    await self._woken.wait()

    async def _try(self) -> None:
        """One try to get or renew the lease. The holder writes without reading, over the version it wrote last."""
        if self._election.leads(time.monotonic()):
            try:
                await self._claim()
            except Outrun as error:
                log.info("lease %s: has changed, look again: %s", self.name, error)
            else:
                return
        self._election.observe(await self.keeper.look(), time.monotonic())
        with contextlib.suppress(Outrun):  # another was faster
            await self._claim()

    async def _claim(self) -> None:
        sent_at = time.monotonic()
        act = self._election.decide(sent_at)
        if not isinstance(act, Claim):
            return
        self._may_hold = True
        record = await self.keeper.claim(act, self._election.spec)
        self._election.claimed(record, sent_at, time.monotonic())

    async def _release(self) -> None:
        while True:
            seen = await self.keeper.look()
            self._election.observe(seen, time.monotonic())
            if seen is None or seen.holder != self._election.spec.identity:
                return
            with contextlib.suppress(Outrun):  # a renewal that was cut short on its way still arrived
                await self.keeper.release(seen)
                log.info("lease %s: given back", self.name)
                return

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
