"""Standby pods get their revision's labels, and its ReplicaSet gets them: each revision in its turn.

The turns are core/standby/turns.py's. Where pods can be held, labels come with the pod held, before the replicas, and
settling.py lets it go behind them; elsewhere they come behind, as soon as the ReplicaSet's controller knows of the
replicas. What comes behind is a task for each revision, beside its reconciliation, which a next request may need.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from autoscaler_shim.standby.metrics import Tally
from autoscaler_shim.standby.pods import StandbyPods
from autoscaler_shim.standby.settling import Settling
from autoscaler_shim.standby.shapes import Shape, Shapes
from kserve_ext.api.standby import assigning
from kserve_ext.api.standby.fitting import Wish
from kserve_ext.core.standby.adoption import Adoption
from kserve_ext.core.standby.known import Known
from kserve_ext.core.standby.turns import PLACE_S, Turns
from kserve_ext.kube.client import KubeError

log = logging.getLogger(__name__)

LABELS_AGAIN_S: Final = 1.0
#: Until the copy of a pod that was another one meanwhile is new.
CHANGED_S: Final = 0.05


class Adopter(NamedTuple):
    """A revision that standby pods have to do with, as it is planned for."""

    key: str  # of its PodAutoscaler
    adoption: Adoption
    shape: Shape | None

    @property
    def wish(self) -> Wish | None:
        """None: it takes no more of them, and nobody could label one anew."""
        return self.shape.wish if self.shape is not None else None


class Due(NamedTuple):
    """What of a revision's pods comes behind its replicas."""

    label: Sequence[str]  # uids: once their ReplicaSet knows of so many
    replicas: int
    settle: Sequence[str]  # uids: have their labels already


class Adopting:
    def __init__(
        self,
        known: Known,
        pods: StandbyPods,
        shapes: Shapes,
        settling: Settling,
        tally: Tally,
        may: Callable[[str], bool],
        again: Callable[[str], None],
        look_again: Callable[[str, float], None],
        some_wait: Callable[[float], None],
    ) -> None:
        """`again` reconciles a PodAutoscaler, `look_again` in so many seconds; `some_wait` hears at which time."""
        self._known = known
        self._pods = pods
        self._shapes = shapes
        self._settling = settling
        self._tally = tally
        self._may = may
        self._again = again
        self._look_again = look_again
        self._some_wait = some_wait
        self._turns = Turns()
        self._next_turns: asyncio.TimerHandle | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def ask(self, key: str) -> bool:
        """Whether it may adopt what it has to adopt. If not, it is named to `again` in its turn."""
        now = time.monotonic()
        turn = self._turns.ask(key, now)
        if self._turns.waiting:
            self._some_wait(now)
            self._name_next()
        return turn

    def done(self, key: str) -> None:
        """It needs no turn (any more). Unless it is at it: then it has had it once that is done."""
        if key not in self._tasks:
            self._turns.done(key)
            self._name_next()

    def can_hold(self, uid: str) -> bool:
        """It isn't its ReplicaSet's yet. One that is held already has to be let go, whoever held it."""
        pod = self._known.pods.get(uid)
        return pod is not None and (pod.held or (self._settling.can_hold and not pod.revision))

    async def hold(self, adopter: Adopter, uids: Sequence[str]) -> list[str]:
        """Those that have their labels now, and wait for their place."""
        done = await asyncio.gather(*(self._label(adopter, uid, hold=True) for uid in uids))
        return [uid for uid, written in zip(uids, done, strict=True) if written]

    def adopted(self, adopter: Adopter, uid: str) -> None:
        now = time.monotonic()
        adopter.adoption.labelled(uid, now)
        took_s, pod = self._tally.adopted(uid, now), self._known.pods.get(uid)
        log.info("%s: pod %s is its own now, %s", adopter.key, pod.name if pod is not None else uid, took_s)

    def begin(self, adopter: Adopter, due: Due) -> None:
        key = adopter.key
        if not (due.label or due.settle) or key in self._tasks:
            return
        task = asyncio.create_task(self._adopt(adopter, due), name=f"adoption {key}")
        self._tasks[key] = task

        def ended(_: asyncio.Task[None]) -> None:
            self._tasks.pop(key, None)
            self.done(key)

        task.add_done_callback(ended)

    def release(self, key: str) -> None:
        """Somebody else's from now on, or gone."""
        if (task := self._tasks.get(key)) is not None:
            task.cancel()
        self.done(key)

    def close(self) -> None:
        if self._next_turns is not None:
            self._next_turns.cancel()
        for task in self._tasks.values():
            task.cancel()

    # --- inside

    def _name_next(self) -> None:
        for key in self._turns.free(time.monotonic()):
            self._again(key)
        if self._next_turns is not None:
            self._next_turns.cancel()
            self._next_turns = None
        if self._turns.waiting:
            self._next_turns = asyncio.get_running_loop().call_later(PLACE_S, self._name_next)

    async def _adopt(self, adopter: Adopter, due: Due) -> None:
        key, adoption = adopter.key, adopter.adoption
        try:
            if due.settle:
                present = self._shapes.template_hash(adoption.revision)
                settled = await self._settling.settle(adoption.revision, present, due.settle)
                for uid in settled.astray:
                    adoption.astray(uid)
                if not settled.done or settled.astray:
                    log.info("%s: its ReplicaSet has yet to get its new pods; looked at again", key)
            if due.label and not await self._shapes.room(adoption.revision, due.replicas):
                log.info("%s: its ReplicaSet has yet to hear of %d pods; looked at again", key, due.replicas)
            elif self._may(key):
                for uid in [uid for uid in due.label if self._still(adoption, uid)]:
                    if await self._label(adopter, uid):
                        self.adopted(adopter, uid)
        except KubeError as error:
            log.info("%s: no labels yet: %s; tried again", key, error)
        self._look_again(key, LABELS_AGAIN_S)

    def _still(self, adoption: Adoption, uid: str) -> bool:
        """Whether it is to be adopted yet, and wasn't given back meanwhile."""
        pod = self._known.pods.get(uid)
        orphan = pod is not None and pod.revision == adoption.revision and not pod.owned
        return uid in adoption.taken or orphan

    async def _label(self, adopter: Adopter, uid: str, hold: bool = False) -> bool:
        pod, wish = self._pods.get(uid), adopter.wish
        template_hash = self._shapes.template_hash(adopter.adoption.revision)
        if pod is None or wish is None or not template_hash:
            return False
        version = str(pod["metadata"]["resourceVersion"])
        if await self._pods.patch(uid, assigning.labelled(wish, template_hash, uid, version, hold)):
            return True
        log.info("%s: pod %s has changed meanwhile; looked at again", adopter.key, pod["metadata"]["name"])
        self._look_again(adopter.key, CHANGED_S)
        return False
