"""Prefill leases: a decode instance's request for a slot of a prefill instance, held and granted like a request.

The home of a group answers LeasePrefill through its own shard: the wait counts as demand on the prefill revision, so
it wakes and scales it. A lease ends by ReturnPrefill, with the connection of the decode instance that has it, or
after the revision's timeout; a slot that comes when the caller has given up goes back at once.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from activator_replacement.dispatch import Dispatcher
from activator_replacement.routes import Routes
from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.wire.messages import Ack, LeasePrefill, PrefillLease, ReturnPrefill

MARGIN_S = 0.05  # for the answer's way to the caller
PASS_ON_S = 1.0
NOT_IN_TIME = "no prefill instance was free in time"


class PrefillWait:
    """One lease: waiting, given or refused."""

    held_bytes = 0

    def __init__(
        self,
        leases: PrefillLeases,
        lease: str,
        revision: RevisionKey,
        caller: Caller,
        answer: asyncio.Future[PrefillLease],
    ) -> None:
        self.leases = leases
        self.lease = lease
        self.revision = revision
        self.instance = InstanceID("")
        self.caller = caller
        self.answer = answer
        self.until = caller.expires - MARGIN_S
        self.timer: asyncio.TimerHandle | None = None

    def go(self, addr: str, instance: InstanceID) -> None:
        self.instance = instance
        loop = self.answer.get_loop()
        if not self.answer.done() and loop.time() < self.until:
            generation = self.leases.generation_of(self.revision, instance)
            self.answer.set_result(PrefillLease(self.lease, instance, addr, generation))
        else:  # nobody would hear of it; not from within the throttler's own call
            self.refuse(503, NOT_IN_TIME)
            loop.call_soon(self.leases.end, self, "")

    def refuse(self, status: int, reason: str, retry_after_s: float = 0.0) -> None:
        if not self.answer.done():
            self.answer.set_result(PrefillLease("", reason=reason))


class PrefillLeases:
    """The rpc handlers of LeasePrefill and ReturnPrefill."""

    def __init__(
        self,
        rpc: Rpc,
        dispatcher: Dispatcher,
        routes: Routes,
        generation_of: Callable[[RevisionKey, InstanceID], int],
    ) -> None:
        self.dispatcher = dispatcher
        self.routes = routes
        self.generation_of = generation_of
        #: what a former process of this name has given is never taken for one of ours
        prefix = f"{dispatcher.me}/{dispatcher.shard.incarnation:x}"
        self._ids = (f"{prefix}/{n:x}" for n in itertools.count(1))
        self._open: dict[str, PrefillWait] = {}
        rpc.handle(LeasePrefill, self.lease)
        rpc.handle(ReturnPrefill, self.give_back)
        rpc.on_lost(self.caller_gone)

    def lease(self, message: LeasePrefill, caller: Caller) -> Any:
        revision = self.routes.prefill_of(message.group)
        if revision is None or revision.key not in self.dispatcher.shard.parts:
            return PrefillLease("", reason=f"group {message.group} has no prefill revision here")
        loop = asyncio.get_running_loop()
        wait = PrefillWait(self, next(self._ids), revision.key, caller, loop.create_future())
        self._open[wait.lease] = wait
        wait.timer = loop.call_at(wait.until, self._late, wait.lease, revision.timeout_s)
        self.dispatcher.place(wait, revision.hold)
        if wait.answer.done() and not wait.instance:
            self._drop(wait)
        return wait.answer

    def give_back(self, message: ReturnPrefill, caller: Caller) -> Ack:
        wait = self._open.get(message.lease)
        if wait is not None:
            self.end(wait, message.failed)
        else:
            self._pass_on(message)
        return Ack(self.dispatcher.rpc.epoch())

    def caller_gone(self, caller: Caller) -> None:
        """The decode instance's connection has ended: it can't use its leases any more."""
        gone = [w for w in self._open.values() if w.caller.connection is caller.connection]
        for wait in gone:
            self.end(wait, "")

    def end(self, wait: PrefillWait, failed: str) -> None:
        """A wait is over, or a lease is back; to end one again changes nothing."""
        if self._open.get(wait.lease) is not wait:
            return
        self._drop(wait)
        if not wait.instance:
            self.dispatcher.forget(wait)
        elif failed:
            self.dispatcher.give_up(wait, failed, again=False)
        else:
            self.dispatcher.release(wait)

    # --- inside

    def _pass_on(self, message: ReturnPrefill) -> None:
        """The home has moved since: the lease is in the account of the shard whose name it begins with."""
        giver = FunctionID(message.lease.partition("/")[0])
        addr = self.dispatcher.addr_of(giver) if giver != self.dispatcher.me else ""
        if addr:
            self.dispatcher.rpc.call_soon(addr, message, lambda reply: None, PASS_ON_S)

    def _late(self, lease: str, timeout_s: float) -> None:
        """The caller's deadline: a wait ends; a lease that was given may be kept for the revision's timeout."""
        wait = self._open.get(lease)
        if wait is None:
            return
        if wait.instance:
            wait.timer = asyncio.get_running_loop().call_later(timeout_s, self.end, wait, "")
        else:
            part = self.dispatcher.shard.parts.get(wait.revision)
            why = part.refusal if part is not None else ""
            wait.refuse(503, why or NOT_IN_TIME)
            self.end(wait, "")

    def _drop(self, wait: PrefillWait) -> None:
        self._open.pop(wait.lease, None)
        if wait.timer is not None:
            wait.timer.cancel()
