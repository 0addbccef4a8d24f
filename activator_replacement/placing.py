"""Asks Schedule functions to place what homes want started: one after the other, until one can be reached."""

from __future__ import annotations

import asyncio

from activator_replacement.outward import Outward
from kserve_ext.core import rendezvous
from kserve_ext.core.dispatch.facts import Outcome, Place
from kserve_ext.core.facts import Mark, View
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.rpc import RpcError
from kserve_ext.rpc.process import wall_time
from kserve_ext.wire import messages as m

TIMEOUT_S = 10.0
FAILED_S = 1.0  # so long one that failed is asked last


class Placing:
    def __init__(self, outward: Outward) -> None:
        self.rpc, self.membership, self.homes, self.carry = outward
        self.loop = asyncio.get_running_loop()
        #: roomiest Schedule function first is not known here: taken in rendezvous order, the failed ones last
        self._functions: list[FunctionID] = []
        self._ranked: dict[str, list[FunctionID]] = {}
        self._failed_at: dict[FunctionID, float] = {}

    def view(self, view: View) -> None:
        self._functions = [FunctionID(x.id) for x in view.of("schedule")]
        self._ranked.clear()

    def place(self, home_key: str, i: Place) -> None:
        self._ask(home_key, i, self._schedulers(home_key, i.at))

    # --- inside

    def _ask(self, home_key: str, i: Place, schedulers: list[FunctionID], tried: str = "") -> None:
        """Asks one, and the next when the first can't be reached."""
        if not schedulers:
            self._placed(
                home_key, i, None, tried or "there is no Schedule function: see `galaxy status`", sent=False
            )
            return
        function, *others = schedulers
        membership = self.membership
        message = m.Schedule(
            items=tuple([m.Item(revision, ids) for revision, ids in i.items]),
            epoch=membership.view.epoch,
            home=membership.me,
            home_addr=membership.addr,
            waiting=tuple([addr for shard in i.waiting if (addr := membership.addr_of(shard))]),
            gang=i.gang,
            marks=(Mark("decided", wall_time(), f"home {membership.me}, via {function}"),),
            near=i.near,
            waited_s=i.waited_s,
        )

        def done(reply: m.Message | RpcError) -> None:
            if isinstance(reply, m.Placements):
                why = "" if not reply.stale else f"{function} knows a newer view"
                self._placed(home_key, i, reply, why, sent=True)
                return
            assert isinstance(reply, RpcError)
            self._failed_at[function] = self.loop.time()
            if reply.sent:
                self._placed(home_key, i, None, f"{function}: {reply}", sent=True)
            else:
                self._ask(home_key, i, others, f"{function}: {reply}")

        self.rpc.call_soon(membership.addr_of(function), message, done, TIMEOUT_S)

    def _schedulers(self, home_key: str, first: FunctionID | None) -> list[FunctionID]:
        """That which keeps room, then in the key's own order, so that homes spread; those that failed go last."""
        ranked = self._ranked.get(home_key)
        if ranked is None:
            ranked = self._ranked[home_key] = rendezvous.ranked(home_key, self._functions)
        if first is None and not self._failed_at:
            return ranked
        now = self.loop.time()
        self._failed_at = {f: at for f, at in self._failed_at.items() if now - at < FAILED_S}
        return sorted(ranked, key=lambda f: (f in self._failed_at, f != first))

    def _placed(self, home_key: str, i: Place, reply: m.Placements | None, why: str, *, sent: bool) -> None:
        home = self.homes.get(home_key)
        if home is None:
            return
        by_id: dict[InstanceID, Outcome] = {}
        if reply is not None:
            by_id.update((p.instance, Outcome(p.instance, node=p.node)) for p in reply.placed)
            by_id.update(
                (r.instance, Outcome(r.instance, reason=r.reason, unknown=r.unknown, never=r.never))
                for r in reply.refused
            )
        lost = NodeID("?") if reply is None and sent else NodeID("")
        outcomes: dict[RevisionKey, list[Outcome]] = {}
        for revision, ids in i.items:
            for instance in ids:
                outcome = by_id.get(instance) or Outcome(instance, reason=why or "not answered", unknown=lost)
                outcomes.setdefault(revision.key, []).append(outcome)
        self.carry(home_key, home.placed(outcomes, self.loop.time()))
