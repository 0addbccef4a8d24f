"""Scales where there are standby pods: what they cover isn't asked for the plain way, and they become the revision's.

In the place of knative/scales.py, and the same for revisions that wish for none. It carries out what
core/standby/adoption.py plans: slots are taken at once; labels come with the pod held, right before the replicas,
which are written with the test of the generation, and settling.py lets the pod go. Where pods can't be held, labels
come behind, as soon as the ReplicaSet's controller knows of the replicas.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from autoscaler_shim.knative.scales import Scale, Scales, kind_of
from autoscaler_shim.standby.metrics import Tally
from autoscaler_shim.standby.orders import Orders
from autoscaler_shim.standby.pods import StandbyPods
from autoscaler_shim.standby.saying import Saying
from autoscaler_shim.standby.settling import Settling
from autoscaler_shim.standby.shapes import Shape, Shapes
from kserve_ext.api.knative.conditions import Condition, Document, text_map
from kserve_ext.api.knative.pa import REVISION_LABEL
from kserve_ext.api.standby import assigning, names
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.knative.pod_autoscaler import Pods
from kserve_ext.core.standby.adoption import Adoption, Plan, Wanted
from kserve_ext.core.standby.known import Known
from kserve_ext.core.standby.pools import Lack
from kserve_ext.core.standby.turns import PLACE_S, Turns
from kserve_ext.kube.client import Client, KubeError
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import DEPLOYMENTS

log = logging.getLogger(__name__)

LABELS_AGAIN_S: Final = 1.0
#: Until the copy of a pod that was another one meanwhile is new.
CHANGED_S: Final = 0.05


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
        self._adopting: dict[str, asyncio.Task[None]] = {}
        self._turns = Turns()
        self._next_turns: asyncio.TimerHandle | None = None

    async def apply(self, key: str, pa: Document, scale: int) -> bool:
        adoption = self._adoption(key, pa)
        if adoption is None:
            return await super().apply(key, pa, scale)
        return await self._carry_out(key, pa, adoption, scale)

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
        if (task := self._adopting.get(key)) is not None:
            task.cancel()
        self._had_turn(key)

    def close(self) -> None:
        super().close()
        if self._next_turns is not None:
            self._next_turns.cancel()
        for timer in self._rechecks.values():
            timer.cancel()
        for task in self._adopting.values():
            task.cancel()

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
        reference = (pa.get("spec") or {}).get("scaleTargetRef") or {}
        namespace, name = pa["metadata"]["namespace"], str(reference.get("name") or "")
        kind = kind_of(reference)
        try:
            current = await self._current(kind, namespace, name)
        except KubeError:
            self.withdraw(key)
            raise
        if not self._may(key) or kind != DEPLOYMENTS:
            self.withdraw(key)
            return False
        shape = self._shapes.of(adoption.revision)
        if shape is None or shape.wish is None:  # nobody could label it anew: its ReplicaSet gets it as it is
            for uid in adoption.held:
                adoption.labelled(uid, time.monotonic())
        plan = adoption.plan(self._wanted(adoption, shape, current.replicas, pods), time.monotonic())
        self._tally.missed(plan.why, plan.missed)
        self._saying.planned(adoption, plan, time.monotonic())
        self._look_again(key, plan.recheck_s)
        for seen in plan.take:
            assert shape is not None
            assert shape.wish is not None
            self._orders.take(key, adoption, shape.wish, seen)
        if shape is not None and shape.wish is not None:
            for uid in adoption.taken.keys() - set(plan.free):
                self._orders.tell_anew(key, adoption, shape.wish, uid)
        for uid in plan.free:
            self._orders.free(key, adoption, uid)
        turn = self._has_turn(key, plan)
        try:
            return await self._write_plan(key, (namespace, name), adoption, shape, plan, current, turn)
        finally:
            if turn:
                self._had_turn(key)

    async def _write_plan(
        self,
        key: str,
        deployment: tuple[str, str],
        adoption: Adoption,
        shape: Shape | None,
        plan: Plan,
        current: Scale,
        turn: bool,
    ) -> bool:
        """What of it goes to the API server; nothing is adopted where it isn't its `turn`."""
        settle = plan.settle if turn else ()
        if not self._turn(key, current.replicas, plan.replicas, DEPLOYMENTS):
            self._begin(key, adoption, shape, (), 0, settle)
            return False
        keeps = self._settling.can_hold
        first = self._hold_back if keeps else self._release
        leaving = [uid for uid in plan.release if await first(adoption, uid)]
        # Whose labels are still on serves on, and has its place: its slot may be another's only without them.
        labelled = {*plan.release} - {*leaving} - adoption.taken.keys()
        wanted = plan.replicas + len(labelled)
        for uid in plan.victims:
            await self._pods.patch(uid, assigning.goes_first(uid))
        hold = [uid for uid in plan.label if turn and self._can_hold(uid)]
        held = await self._hold(key, adoption, shape, hold)
        later = [uid for uid in plan.label if turn and uid not in hold]
        # One that isn't held, or is to wait, has no place yet.
        left = len(plan.label) - len(held) - len(later)
        replicas = max(wanted - left, min(current.replicas, wanted))
        if current.replicas != replicas:
            await self._write(DEPLOYMENTS, *deployment, current, replicas)
        adoption.made_room([*held, *later], replicas)
        for uid in held:
            self._adopted(key, adoption, uid)
        if keeps:
            leaving = [uid for uid in leaving if await self._release(adoption, uid, newer=True)]
        for uid in leaving:
            self._orders.free(key, adoption, uid)
        if len(leaving) < len(plan.release):
            self._look_again(key, CHANGED_S)
        self._begin(key, adoption, shape, later, replicas, [*held, *settle])
        for uid in plan.delete:
            log.warning("%s: pod %s can't serve it and is deleted: %s", key, *self._said(uid))
            self._tally.failed += 1
            self._saying.failed(adoption.revision, uid, *self._said(uid))
            await self._pods.delete(uid)
        return True

    def _begin(
        self,
        key: str,
        adoption: Adoption,
        shape: Shape | None,
        label: Sequence[str],
        replicas: int,
        settle: Sequence[str],
    ) -> None:
        """Beside the reconciliation, which a next request may need at once."""
        if not (label or settle) or key in self._adopting:
            return
        work = self._adopt(key, adoption, shape, label, replicas, settle)
        adopting = self._adopting[key] = asyncio.create_task(work, name=f"adoption {key}")

        def done(_: asyncio.Task[None]) -> None:
            self._adopting.pop(key, None)
            self._had_turn(key)

        adopting.add_done_callback(done)

    def _has_turn(self, key: str, plan: Plan) -> bool:
        """Whether it may adopt what it has to adopt. If not, it is named in its turn."""
        if not (plan.label or plan.settle):
            self._had_turn(key)
            return False
        now = time.monotonic()
        turn = self._turns.ask(key, now)
        if self._turns.waiting:
            self._waves.goes_on(now)
            self._name_next()
        return turn

    def _had_turn(self, key: str) -> None:
        """Unless it is at it: then it has had it once that is done."""
        if key not in self._adopting:
            self._turns.done(key)
            self._name_next()

    def _name_next(self) -> None:
        for key in self._turns.free(time.monotonic()):
            self._again_of(key)
        if self._next_turns is not None:
            self._next_turns.cancel()
            self._next_turns = None
        if self._turns.waiting:
            self._next_turns = asyncio.get_running_loop().call_later(PLACE_S, self._name_next)

    def _wanted(self, adoption: Adoption, shape: Shape | None, replicas: int, pods: int | None) -> Wanted:
        revision = adoption.revision
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

    def _can_hold(self, uid: str) -> bool:
        """It isn't its ReplicaSet's yet. One that is held already has to be let go, whoever held it."""
        pod = self._known.pods.get(uid)
        return pod is not None and (pod.held or (self._settling.can_hold and not pod.revision))

    async def _hold(
        self, key: str, adoption: Adoption, shape: Shape | None, uids: Sequence[str]
    ) -> list[str]:
        """Those that have their labels now, and wait for their place."""
        done = await asyncio.gather(*(self._label(key, adoption, shape, uid, True) for uid in uids))
        return [uid for uid, written in zip(uids, done, strict=True) if written]

    async def _adopt(
        self,
        key: str,
        adoption: Adoption,
        shape: Shape | None,
        label: Sequence[str],
        replicas: int,
        settle: Sequence[str],
    ) -> None:
        """`label`: once their ReplicaSet knows of so many replicas; `settle`: have their labels already."""
        try:
            if settle:
                present = self._shapes.template_hash(adoption.revision)
                settled = await self._settling.settle(adoption.revision, present, settle)
                for uid in settled.astray:
                    adoption.astray(uid)
                if not settled.done or settled.astray:
                    log.info("%s: its ReplicaSet has yet to get its new pods; looked at again", key)
            if label and not await self._shapes.room(adoption.revision, replicas):
                log.info("%s: its ReplicaSet has yet to hear of %d pods; looked at again", key, replicas)
            elif self._may(key):
                for uid in [uid for uid in label if self._still(adoption, uid)]:
                    if await self._label(key, adoption, shape, uid):
                        self._adopted(key, adoption, uid)
        except KubeError as error:
            log.info("%s: no labels yet: %s; tried again", key, error)
        self._look_again(key, LABELS_AGAIN_S)

    def _still(self, adoption: Adoption, uid: str) -> bool:
        """Whether it is to be adopted yet, and wasn't given back meanwhile."""
        pod = self._known.pods.get(uid)
        orphan = pod is not None and pod.revision == adoption.revision and not pod.owned
        return uid in adoption.taken or orphan

    async def _label(
        self, key: str, adoption: Adoption, shape: Shape | None, uid: str, hold: bool = False
    ) -> bool:
        pod = self._pods.get(uid)
        template_hash = self._shapes.template_hash(adoption.revision)
        if pod is None or shape is None or shape.wish is None or not template_hash:
            return False
        version = str(pod["metadata"]["resourceVersion"])
        patch = assigning.labelled(shape.wish, template_hash, uid, version, hold)
        if await self._pods.patch(uid, patch):
            return True
        log.info("%s: pod %s has changed meanwhile; looked at again", key, pod["metadata"]["name"])
        self._look_again(key, CHANGED_S)
        return False

    def _adopted(self, key: str, adoption: Adoption, uid: str) -> None:
        now = time.monotonic()
        adoption.labelled(uid, now)
        took_s, pod = self._tally.adopted(uid, now), self._known.pods.get(uid)
        log.info("%s: pod %s is its own now, %s", key, pod.name if pod is not None else uid, took_s)

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
