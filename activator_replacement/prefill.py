"""Prefill leases: a decode instance's request for a slot of a prefill instance, held and granted like a request.

The home of a group answers LeasePrefill through its own shard: the wait counts as demand on the prefill revision, so
it wakes and scales it. Which instance it is, core/dispatch/pairing.py chooses. A lease ends by ReturnPrefill, with
the connection of the decode instance that has it, or after the revision's timeout; a slot that comes when the caller
has given up goes back at once. What leases and decode instances say of tokens goes on to the home's scaling.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from typing import Any, Protocol

from activator_replacement.dispatch import Dispatcher
from activator_replacement.routes import Routes
from kserve_ext.core.dispatch.pairing import Ask, Pairing
from kserve_ext.core.facts import Revision
from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.wire.messages import Ack, Decoded, LeasePrefill, PrefillLease, ReturnPrefill

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
        ask: Ask,
        caller: Caller,
        answer: asyncio.Future[PrefillLease],
    ) -> None:
        self.ask = ask
        self.why = ""
        self.ahead = 0
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
            self.answer.set_result(self.leases.given(self, addr))
        else:  # nobody would hear of it; not from within the throttler's own call
            self.refuse(503, NOT_IN_TIME)
            loop.call_soon(self.leases.end, self, "")

    def refuse(self, status: int, reason: str, retry_after_s: float = 0.0) -> None:
        if not self.answer.done():
            self.answer.set_result(PrefillLease("", reason=reason))


class Accounts(Protocol):
    """What homes know, and are told (homes.py)."""

    def generation_of(self, key: RevisionKey, instance: InstanceID) -> int: ...
    def place_of(self, home_key: str, instance: InstanceID) -> str: ...
    def prefill_work(self, key: RevisionKey, arrived: int, queued: int, velocity: float) -> None: ...
    def decode_work(self, home_key: str, work: Decoded) -> None: ...


class PrefillLeases:
    """The rpc handlers of LeasePrefill, ReturnPrefill and Decoded."""

    def __init__(self, rpc: Rpc, dispatcher: Dispatcher, routes: Routes, accounts: Accounts) -> None:
        self.dispatcher = dispatcher
        self.routes = routes
        self.accounts = accounts
        self._random = random.Random(dispatcher.shard.incarnation)
        self._pairings: dict[RevisionKey, Pairing] = {}
        dispatcher.prefill_chooser = self._choose_for
        #: what a former process of this name has given is never taken for one of ours
        prefix = f"{dispatcher.me}/{dispatcher.shard.incarnation:x}"
        self._ids = (f"{prefix}/{n:x}" for n in itertools.count(1))
        self._open: dict[str, PrefillWait] = {}
        self._queued: Counter[RevisionKey] = Counter()  # prompt tokens of those
        rpc.handle(LeasePrefill, self.lease)
        rpc.handle(ReturnPrefill, self.give_back)
        rpc.handle(Decoded, self.decoded)
        rpc.on_lost(self.caller_gone)

    def lease(self, message: LeasePrefill, caller: Caller) -> Any:
        revision = self.routes.prefill_of(message.group)
        if revision is None or revision.key not in self.dispatcher.shard.parts:
            return PrefillLease("", reason=f"group {message.group} has no prefill revision here")
        ask = self._ask(message)
        known = self.dispatcher.shard.parts[revision.key].throttler.trackers
        if known and known.keys() <= set(ask.excluded):
            return PrefillLease("", reason="decode leaves every prefill instance alone for now")
        loop = asyncio.get_running_loop()
        wait = PrefillWait(self, next(self._ids), revision.key, ask, caller, loop.create_future())
        self._open[wait.lease] = wait
        self._queued[revision.key] += ask.tokens
        self._worked(revision.key, ask.tokens)
        wait.timer = loop.call_at(wait.until, self._late, wait.lease, revision.timeout_s)
        self.dispatcher.place(wait, revision.hold)
        if wait.answer.done() and not wait.instance:
            self._drop(wait)
        return wait.answer

    def give_back(self, message: ReturnPrefill, caller: Caller) -> Ack:
        wait = self._open.get(message.lease)
        if wait is not None:
            self.end(wait, message.failed, message)
        else:
            self._pass_on(message)
        return Ack(self.dispatcher.rpc.epoch())

    def caller_gone(self, caller: Caller) -> None:
        """The decode instance's connection has ended: it can't use its leases any more."""
        gone = [w for w in self._open.values() if w.caller.connection is caller.connection]
        for wait in gone:
            self.end(wait, "")

    def decoded(self, message: Decoded, caller: Caller) -> Ack:
        self.accounts.decode_work(message.group, message)
        revision = self.routes.prefill_of(message.group)
        if revision is not None and message.unsent:
            self._worked(revision.key, message.unsent)
        return Ack(self.dispatcher.rpc.epoch())

    def given(self, wait: PrefillWait, addr: str) -> PrefillLease:
        pairing = self._pairings[wait.revision]
        return PrefillLease(
            wait.lease,
            wait.instance,
            addr,
            self.accounts.generation_of(wait.revision, wait.instance),
            why=wait.why,
            queued=wait.ahead,
            tokens_s=pairing.velocity_of(wait.instance),
        )

    def end(self, wait: PrefillWait, failed: str, work: ReturnPrefill | None = None) -> None:
        """A wait is over, or a lease is back; to end one again changes nothing."""
        if self._open.get(wait.lease) is not wait:
            return
        self._drop(wait)
        pairing = self._pairings.get(wait.revision)
        if wait.instance and pairing is not None:
            done = (work.tokens, work.started, work.ended) if work is not None else ()
            pairing.released(wait.instance, wait.ask, *done)
        self._worked(wait.revision, 0)
        if not wait.instance:
            self.dispatcher.forget(wait)
        elif failed:
            self.dispatcher.give_up(wait, failed, again=False)
        else:
            self.dispatcher.release(wait)

    # --- inside

    def _choose_for(self, revision: Revision) -> Pairing:
        def place_of(instance: InstanceID) -> str:
            return self.accounts.place_of(revision.home_key, instance)

        known = self.dispatcher.shard.parts
        self._pairings = {key: pairing for key, pairing in self._pairings.items() if key in known}
        pairing = self._pairings[revision.key] = Pairing(self._random.choice, place_of)
        return pairing

    def _ask(self, message: LeasePrefill) -> Ask:
        place = self.accounts.place_of(message.group, message.instance)
        return Ask(
            message.tokens, message.uncached, message.prefix, message.channels, message.excluded, place
        )

    def _worked(self, key: RevisionKey, arrived: int) -> None:
        """Tells home of prompt tokens that are new, of all that wait or are computed, and how fast that goes."""
        pairing = self._pairings.get(key)
        if pairing is not None:
            self.accounts.prefill_work(key, arrived, self._queued[key], pairing.tokens_s)

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
        if self._open.pop(wait.lease, None) is not None:
            self._queued[wait.revision] -= wait.ask.tokens
            if not self._queued[wait.revision]:
                del self._queued[wait.revision]
        if wait.timer is not None:
            wait.timer.cancel()
