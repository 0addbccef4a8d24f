"""Scales where there are standby pods: what they cover isn't asked for the plain way, and they become the revision's.

In the place of knative/scales.py, and the same for revisions that wish for none. It carries out what
core/standby/adoption.py plans: slots are taken at once; replicas are written with the test of the generation, and
what is to become the revision's own gets its labels before them or behind them (adopting.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from autoscaler_shim.knative.scales import Scale, Scales, target_of
from autoscaler_shim.standby.adopting import CHANGED_S, Adopter, Adopting, Due
from autoscaler_shim.standby.metrics import Tally
from autoscaler_shim.standby.orders import Orders
from autoscaler_shim.standby.pods import StandbyPods
from autoscaler_shim.standby.saying import Saying
from autoscaler_shim.standby.settling import Settling
from autoscaler_shim.standby.shapes import Shapes
from kserve_ext.api.knative.conditions import Condition, Document, text_map
from kserve_ext.api.knative.pa import REVISION_LABEL
from kserve_ext.api.standby import assigning, names
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.knative.pod_autoscaler import Pods
from kserve_ext.core.standby.adoption import Adoption, Plan, Wanted
from kserve_ext.core.standby.known import Known
from kserve_ext.core.standby.pools import Lack
from kserve_ext.kube.client import Client, KubeError
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import DEPLOYMENTS

log = logging.getLogger(__name__)


class StandbyScales(Scales):
    def __init__(
        self,
        client: Client,
        deployments: Informer,
        again: Callable[[str], None],
        may: Callable[[str], bool],
        known: Known,
        orders: Orders,
        pods: StandbyPods,
        shapes: Shapes,
        settling: Settling,
        tally: Tally,
        counts: Callable[[str], Pods],
        short: Callable[[str], int],
        lack: Callable[[str], Lack | None],
        saying: Saying,
    ) -> None:
        """`counts`: pods of a revision; `short`: pods that a pool lacks; `lack`: what keeps it short."""
        super().__init__(client, deployments, again, may)
        self._again_of = again
        self._known = known
        self._orders = orders
        self._pods = pods
        self._shapes = shapes
        self._settling = settling
        self._tally = tally
        self._counts = counts
        self._short = short
        self._lack = lack
        self._saying = saying
        self._adoptions: dict[str, Adoption] = {}
        self._keys: dict[RevisionKey, str] = {}
        self._rechecks: dict[str, asyncio.TimerHandle] = {}
        self._adopting = Adopting(
            known, pods, shapes, settling, tally, may, again, self._look_again, self._waves.goes_on
        )

    async def apply(self, key: str, pa: Document, scale: int) -> bool:
        adoption = self._adoption(key, pa)
        if adoption is None:
            return await super().apply(key, pa, scale)
        return await self._carry_out(key, pa, adoption, scale)

    def at(self, key: str, pa: Document, scale: int) -> bool:
        """What is taken counts beside what its Deployment asks for."""
        adoption = self._adoptions.get(key)
        return super().at(key, pa, scale) and (adoption is None or not adoption.taken)

    def conditions(self, key: str, pa: Document) -> tuple[Condition, ...]:
        revision = _revision(pa)
        shape = self._shapes.of(revision)
        unfit = shape is not None and bool(shape.unfit)
        lack = self._lack(shape.pool.key) if shape is not None and shape.pool is not None else None
        return self._saying.conditions(
            revision, pa, self.problem(key, pa), unfit, lack is None or unfit or lack.amiss
        )

    def notes(self, key: str, pa: Document) -> tuple[tuple[str, str], ...]:
        return self._saying.notes(_revision(pa))

    def problem(self, key: str, pa: Document) -> str:
        """Why it isn't had from standby pods as it wishes; "" = it is."""
        shape = self._shapes.of(_revision(pa))
        field = f"metadata.annotations[{names.SIZE}]"
        if shape is not None and shape.unfit:
            return f"{field}: has no effect, it starts without standby pods: {shape.unfit}"
        if shape is None or shape.pool is None:
            return ""
        if lack := self._lack(shape.pool.key):
            return f"{field}: {lack.words}"
        why = self._known.sleepless(shape.pool.key, shape.engine) if shape.engine else ""
        level = f"metadata.annotations[{names.LEVEL}]"
        return f"{level}: its engine sleeps in none of its standby pods: {why}" if why else ""

    async def leave(self, key: str, pa: Document) -> None:
        adoption = self._adoption(key, pa)
        if adoption is None:
            await super().leave(key, pa)
            return
        await self._carry_out(key, pa, adoption, None)

    def release(self, key: str) -> None:
        super().release(key)
        adoption = self._adoptions.pop(key, None)
        if adoption is not None:
            adoption.close()
            self._keys.pop(adoption.revision, None)
        if (timer := self._rechecks.pop(key, None)) is not None:
            timer.cancel()
        self._adopting.release(key)

    def close(self) -> None:
        super().close()
        self._adopting.close()
        for timer in self._rechecks.values():
            timer.cancel()

    def concerned(self, revision: RevisionKey) -> None:
        """There are news of a standby pod that has to do with it."""
        self._again_of(self._keys.get(revision, revision))

    # --- inside

    def _adoption(self, key: str, pa: Document) -> Adoption | None:
        """None: it has nothing to do with standby pods."""
        found = self._adoptions.get(key)
        if found is not None:
            return found
        revision = _revision(pa)
        if self._shapes.of(revision) is None and not self._known.of_revision(revision):
            return None
        found = self._adoptions[key] = Adoption(revision, self._known)
        self._keys[revision] = key
        return found

    async def _carry_out(self, key: str, pa: Document, adoption: Adoption, pods: int | None) -> bool:
        kind, namespace, name = target_of(pa)
        try:
            current = await self._current(kind, namespace, name)
        except KubeError:
            self.withdraw(key)
            raise
        if not self._may(key) or kind != DEPLOYMENTS:
            self.withdraw(key)
            return False
        shape = self._shapes.of(adoption.revision)
        adopter = Adopter(key, adoption, shape)
        wish = adopter.wish
        if wish is None:  # its ReplicaSet gets what is held as it is
            for uid in adoption.held:
                adoption.labelled(uid, time.monotonic())
        plan = adoption.plan(self._wanted(adopter, current.replicas, pods), time.monotonic())
        self._tally.missed(plan.why, plan.missed)
        self._saying.planned(adoption, plan, time.monotonic())
        self._look_again(key, plan.recheck_s)
        for seen in plan.take:
            assert wish is not None
            self._orders.take(key, adoption, wish, seen)
        if wish is not None:
            for uid in adoption.taken.keys() - set(plan.free):
                self._orders.tell_anew(key, adoption, wish, uid)
        for uid in plan.free:
            self._orders.free(key, adoption, uid)
        turn = self._has_turn(key, plan)
        try:
            return await self._write_plan(adopter, (namespace, name), plan, current, turn)
        finally:
            if turn:
                self._adopting.done(key)

    def _has_turn(self, key: str, plan: Plan) -> bool:
        if plan.label or plan.settle:
            return self._adopting.ask(key)
        self._adopting.done(key)
        return False

    async def _write_plan(
        self, adopter: Adopter, deployment: tuple[str, str], plan: Plan, current: Scale, turn: bool
    ) -> bool:
        """What of it goes to the API server; nothing is adopted where it isn't its `turn`."""
        key, adoption = adopter.key, adopter.adoption
        settle = plan.settle if turn else ()
        if not self._turn(key, current.replicas, plan.replicas, DEPLOYMENTS):
            self._adopting.begin(adopter, Due((), 0, settle))
            return False
        keeps = self._settling.can_hold
        first = self._hold_back if keeps else self._release
        leaving = [uid for uid in plan.release if await first(adoption, uid)]
        # Whose labels are still on serves on, and has its place: its slot may be another's only without them.
        labelled = {*plan.release} - {*leaving} - adoption.taken.keys()
        wanted = plan.replicas + len(labelled)
        for uid in plan.victims:
            await self._pods.patch(uid, assigning.goes_first(uid))
        hold = [uid for uid in plan.label if turn and self._adopting.can_hold(uid)]
        held = await self._adopting.hold(adopter, hold)
        later = [uid for uid in plan.label if turn and uid not in hold]
        # One that isn't held, or is to wait, has no place yet.
        left = len(plan.label) - len(held) - len(later)
        replicas = max(wanted - left, min(current.replicas, wanted))
        if current.replicas != replicas:
            await self._write(DEPLOYMENTS, *deployment, current, replicas)
        adoption.made_room([*held, *later], replicas)
        for uid in held:
            self._adopting.adopted(adopter, uid)
        if keeps:
            leaving = [uid for uid in leaving if await self._release(adoption, uid, newer=True)]
        for uid in leaving:
            self._orders.free(key, adoption, uid)
        if len(leaving) < len(plan.release):
            self._look_again(key, CHANGED_S)
        self._adopting.begin(adopter, Due(later, replicas, [*held, *settle]))
        for uid in plan.delete:
            log.warning("%s: pod %s can't serve it and is deleted: %s", key, *self._said(uid))
            self._tally.failed += 1
            self._saying.failed(adoption.revision, uid, *self._said(uid))
            await self._pods.delete(uid)
        return True

    def _wanted(self, adopter: Adopter, replicas: int, pods: int | None) -> Wanted:
        revision, shape = adopter.adoption.revision, adopter.shape
        pool = shape.pool.key if shape is not None and shape.pool is not None else ""
        there = self._counts(revision)
        return Wanted(
            pods=pods,
            replicas=replicas,
            ready=there.ready,
            there=there.ready + there.not_ready - there.terminating,
            pool=pool,
            unfit=shape.unfit if shape is not None else "",
            lesser=shape.lesser if shape is not None else (),
            engine=shape.engine if shape is not None else "",
            model=shape.model if shape is not None else "",
            short=self._short(pool),
            adoptable=bool(self._shapes.template_hash(revision)),
            rush=self.waking() or self._known.rush(time.monotonic()),
            start_s=shape.start_s if shape is not None else 600.0,
        )

    async def _hold_back(self, adoption: Adoption, uid: str) -> bool:
        """Whether its ReplicaSet makes no other for it while it has a place yet."""
        pod = self._pods.get(uid)
        return pod is not None and await self._pods.patch(uid, assigning.held_back(pod))

    async def _release(self, adoption: Adoption, uid: str, newer: bool = False) -> bool:
        """Whether it has no labels of the revision any more."""
        pod = self._pods.get(uid)
        if pod is None or not await self._pods.patch(uid, assigning.released(pod, newer)):
            return False
        adoption.released(uid, time.monotonic())
        return True

    def _look_again(self, key: str, seconds: float | None) -> None:
        timer = self._rechecks.pop(key, None)
        loop = asyncio.get_running_loop()
        if timer is not None:
            if seconds is not None and timer.when() <= loop.time() + seconds and timer.when() > loop.time():
                self._rechecks[key] = timer
                return
            timer.cancel()
        if seconds is not None:
            self._rechecks[key] = loop.call_later(seconds, self._again_of, key)

    def _said(self, uid: str) -> tuple[str, str]:
        seen, pod = self._known.slots.get(uid), self._known.pods.get(uid)
        name = pod.name if pod is not None else uid
        if seen is None:
            return name, "its slot is gone"
        return name, seen.slot.reason or f"it is {seen.slot.state}"


def _revision(pa: Document) -> RevisionKey:
    metadata = pa["metadata"]
    name = text_map(metadata.get("labels")).get(REVISION_LABEL) or metadata["name"]
    return RevisionKey(f"{metadata['namespace']}/{name}")
