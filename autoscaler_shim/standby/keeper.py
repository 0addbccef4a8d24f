"""Keeps the pools: makes and deletes their pods as core/standby/pools.py says, one replica for each pool.

A pool is kept by whoever has its bucket. What a pool should have is the largest that a revision of its shape asks for
which requests can reach; every replica knows all of that from its informers.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import string
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from autoscaler_shim.standby.metrics import PoolFigures, Tally
from autoscaler_shim.standby.pods import StandbyPods
from autoscaler_shim.standby.shapes import Shapes
from kserve_ext.api.knative.pods import Unplaced, gpus
from kserve_ext.api.standby import pods as standby_pods
from kserve_ext.api.standby import reading
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.giving_way import GivingWay, Idle, Waiting
from kserve_ext.core.standby.known import Known, StandbyPod
from kserve_ext.core.standby.pools import Change, Lack, Member, Pool, State
from kserve_ext.core.standby.slot import AGAIN
from kserve_ext.kube.client import AlreadyExists, Client, KubeError, Unavailable
from kserve_ext.kube.kinds import PODS
from kserve_ext.kube.queue import WorkQueue

log = logging.getLogger(__name__)

WORKERS: Final = 4
#: A pod that has an address is heard of within seconds, once its image's Python has begun.
MUTE_S: Final = 60.0
_LETTERS: Final = string.ascii_lowercase + string.digits


class Keeper:
    def __init__(
        self,
        client: Client,
        known: Known,
        pods: StandbyPods,
        shapes: Shapes,
        tally: Tally,
        owns: Callable[[str], bool],
        reachable: Callable[[RevisionKey], bool],
        busy: Callable[[], bool],
        concerned: Callable[[RevisionKey], None],
        unscheduled: Callable[[], Mapping[str, Unplaced]] = dict,
        placed: Callable[[str], bool] = bool,
        rooms: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """`reachable`: whether requests come to a revision; `busy`: whether a burst is under way; `concerned` is told
        of each revision whose pool has begun to come up, or no longer does; `unscheduled`: revisions' pods that no
        node has room for; `placed`: whether a pod is there, and has a node; `rooms`: by node, GPUs that no revision's
        standby pod has."""
        self._client = client
        self._known = known
        self._pods = pods
        self._shapes = shapes
        self._tally = tally
        self._owns = owns
        self._reachable = reachable
        self._busy = busy
        self._concerned = concerned
        self._unscheduled = unscheduled
        self._placed = placed
        self._rooms = rooms
        self._giving_way = GivingWay()
        #: Pools that get no more pods now, and the pod that comes before them.
        self._holds: Mapping[str, str] = {}
        self._pools: dict[str, Pool] = {}
        self._short: dict[str, int] = {}
        #: By uid: since when a pod without a slot has had none, and which have had a revision.
        self._slotless: dict[str, float] = {}
        self._used: set[str] = set()
        #: Likewise which have been slots: such a one that ends by itself and without an error has a reason that is no
        #: failure (a Secret has changed). Any other may be an image that does nothing, again and again.
        self._met: set[str] = set()
        self._said: dict[str, str] = {}
        self._lacks: dict[str, Lack] = {}
        #: Revisions whose engine sleeps in none of the pool's slots that can be taken.
        self._sleepless: dict[str, list[RevisionKey]] = {}
        #: By pool: GPU-seconds, and until when they are counted.
        self._idle: dict[str, tuple[float, float]] = {}
        #: Of the monotonic clock: pods' ages are of unix seconds, and pauses must not jump with the wall clock.
        self._epoch_s = time.time() - time.monotonic()
        self.queue: WorkQueue[str] = WorkQueue(self._keep, WORKERS, name="standby-pool")

    def start(self) -> None:
        self.queue.start()
        self.add_all()

    async def stop(self) -> None:
        await self.queue.stop()

    def add(self, pool: str) -> None:
        self.queue.add(pool)

    def add_all(self) -> None:
        for pool in {*self._known.pools(), *self._shapes.pools()}:
            self.queue.add(pool)

    async def give_way(self) -> None:
        """To pods of revisions that find no node; now and then."""
        said = dict(self._unscheduled())
        if not said and not self._holds:
            return
        waiting = [Waiting(name, reading.lacking(pod.words), pod.gpus) for name, pod in said.items()]
        leaving = {pod.uid for pod in self._known.pods.values() if pod.leaving}
        made = {
            key: shape.pool.pod
            for key in self._shapes.pools()
            for shape in self._shapes.of_pool(key)
            if shape.pool is not None
        }
        pools = {key: reading.requested(pod) for key, pod in made.items()}
        idle = [one for key in made for one in self._idle_pods(key, pools[key], gpus(made[key]))]
        way = self._giving_way.decide(waiting, idle, pools, self._now(), leaving, self._rooms(), self._placed)
        former, self._holds = self._holds, way.holds
        for key in former.keys() ^ way.holds.keys():
            self.add(key)
        for uid, name in way.delete:
            pod = self._known.pods.get(uid)
            if (
                pod is None
                or self._state(pod)[0] in ("busy", "leaving")
                or not self._owns(standby_pods.bucket_key(pod.pool))
            ):
                continue
            log.info("standby pod %s is deleted: %s finds no node: %s", pod.name, name, said[name].words)
            self._tally.pods_deleted += 1
            await self._pods.delete(uid)

    def forget(self) -> None:
        """Drops what is kept of pods and pools that are no more; now and then."""
        pods, pools = self._known.pods.keys(), {*self._known.pools(), *self._shapes.pools()}
        self._used.intersection_update(pods)
        self._met.intersection_update(pods)
        self._slotless = {uid: since for uid, since in self._slotless.items() if uid in pods}
        for of_pool in (self._pools, self._short, self._said, self._lacks, self._sleepless, self._idle):
            for pool in of_pool.keys() - pools:
                del of_pool[pool]

    def short(self, pool: str) -> int:
        """Pods that it could take back."""
        return self._short.get(pool, 0)

    def lack(self, pool: str) -> Lack | None:
        """None: it has as many as it should, or the others are on their way as far as anybody knows."""
        return self._lacks.get(pool)

    def figures(self) -> list[PoolFigures]:
        found = []
        for pool in sorted({*self._known.pools(), *self._pools}):
            states = [member.state for member in self._members(pool)]
            size, _ = self._asked(pool)
            keeper = self._pools.get(pool)
            namespace, _, digest = pool.partition("/")
            found.append(
                PoolFigures(
                    namespace,
                    digest,
                    size,
                    states.count("ready"),
                    states.count("coming"),
                    states.count("busy"),
                    keeper.failures if keeper else 0,
                    self._idle_gpu_s(pool),
                )
            )
        return found

    # --- inside

    def _now(self) -> float:
        return self._epoch_s + time.monotonic()

    async def _keep(self, key: str) -> float | None:
        size, made = self._asked(key)
        members = list(self._members(key))
        # Whoever keeps the pool, revisions whose buckets are here give their pods back to it.
        held = key in self._holds
        self._short[key] = 0 if held else max(0, size - sum(member.state == "ready" for member in members))
        if not self._owns(standby_pods.bucket_key(key)):
            self._pools.pop(key, None)
            self._note(key, size, members, "")
            return None
        pool = self._pools.setdefault(key, Pool())
        change = pool.decide(size, members, self._busy(), self._now(), held)
        self._tell(key, size, change, pool)
        for uid, why in change.delete:
            pod = self._known.pods.get(uid)
            if pod is None or self._state(pod)[0] in ("busy", "leaving"):
                continue  # it was taken, or goes, while others were deleted
            log.info("standby pod %s is deleted: %s", pod.name, why)
            self._tally.pods_deleted += 1
            await self._pods.delete(uid)
        if change.create and made is not None:
            await asyncio.gather(*(self._make(pool, made) for _ in range(change.create)))
        self._note(key, size, members, pool.reason)
        if not members and not size:
            self._pools.pop(key, None)
            return None
        return change.recheck_s

    async def _make(self, pool: Pool, made: standby_pods.Pool) -> None:
        suffix = "".join(secrets.choice(_LETTERS) for _ in range(6))
        try:
            if why := await self._evicts(made, suffix):
                pool.unwanted(why, self._now())
                return
            created = await self._client.create(PODS, standby_pods.pod(made, suffix))
        except (Unavailable, AlreadyExists):
            raise
        except KubeError as error:
            pool.refused(str(error), self._now())
            return
        self._tally.pods_made += 1
        pool.made(str(created["metadata"]["uid"]), self._now())

    async def _evicts(self, made: standby_pods.Pool, suffix: str) -> str:
        """What its PriorityClass is, only the API server knows."""
        if not made.pod["spec"].get("priorityClassName"):
            return ""
        try:
            would = await self._client.create(PODS, standby_pods.pod(made, suffix), params={"dryRun": "All"})
        except Unavailable:
            raise
        except KubeError:
            return ""  # a webhook that can't be asked for nothing; if it isn't that, the pod is refused, too
        return reading.evicts(would)

    def _asked(self, key: str) -> tuple[int, standby_pods.Pool | None]:
        """Its size, and what its pods are; None: nobody knows any more."""
        size, made = 0, None
        for shape in self._shapes.of_pool(key):
            made = shape.pool
            if shape.wish is not None and shape.wish.size > size and self._reachable(shape.revision):
                size = shape.wish.size
        return size, made

    def _members(self, key: str) -> Iterator[Member]:
        now = self._now()
        for pod in self._known.of_pool(key):
            state, reason = self._state(pod)
            if state == "coming":
                since = self._slotless.setdefault(pod.uid, now)
            else:
                self._slotless.pop(pod.uid, None)
                since = pod.made_at
            yield Member(pod.name, pod.uid, state, since, pod.scheduled, reason)

    def _idle_pods(self, key: str, has: frozenset[str], gpus: int) -> Iterator[Idle]:
        for member in self._members(key):
            if member.state in ("coming", "ready"):
                node = self._known.pods[member.uid].node
                yield Idle(member.uid, key, has, member.made_at, node, member.scheduled, gpus)

    def _state(self, pod: StandbyPod) -> tuple[State, str]:
        seen = self._known.slots.get(pod.uid)
        if seen is not None:
            self._met.add(pod.uid)
        if pod.revision or (seen is not None and seen.slot.revision) or pod.uid in self._known.promised:
            self._used.add(pod.uid)
        if pod.leaving:
            return "leaving", ""
        if pod.ended:
            done = pod.done and pod.uid in self._met
            return ("used up" if done or pod.uid in self._used else "failed"), pod.ended
        if seen is not None and seen.slot.state == "failed":
            return ("used up" if seen.slot.revision else "failed"), seen.slot.reason
        if pod.revision or pod.uid in self._known.promised or (seen is not None and seen.slot.revision):
            return "busy", ""
        if seen is not None and seen.node in self._known.closed:
            return "stranded", f"node {seen.node} is to get nothing new (cordoned)"
        if seen is not None and seen.slot.state == "ready":
            return "ready", ""
        return "coming", pod.trouble or (seen.slot.reason if seen is not None else "")

    def _note(self, key: str, size: int, members: list[Member], failed: str) -> None:
        """`failed`: why the last one could not be made, or ended; who doesn't keep the pool doesn't know."""
        lack = None
        states = [member.state for member in members]
        if states.count("ready") < size:
            coming = (self._trouble(member.uid) for member in members if member.state == "coming")
            first = self._holds.get(key, "")
            way = f"no node: {first}, which finds none, comes before it" if first else ""
            if why := failed or way or next(filter(None, coming), ""):
                lack = Lack(why, "ready" not in states, "busy" in states, bool(failed))
        shapes = self._shapes.of_pool(key)
        sleepless = [s.revision for s in shapes if s.engine and self._known.sleepless(key, s.engine)]
        if (lack, sleepless) != (self._lacks.get(key), self._sleepless.get(key, [])):
            self._sleepless[key] = sleepless
            if lack is None:
                self._lacks.pop(key, None)
            else:
                self._lacks[key] = lack
            for shape in shapes:
                self._concerned(shape.revision)

    def _trouble(self, uid: str) -> str:
        """What keeps a pod from becoming a slot, beside time."""
        pod, seen = self._known.pods.get(uid), self._known.slots.get(uid)
        if pod is not None and pod.trouble:
            return pod.trouble
        since = self._slotless.get(uid)
        if (
            pod is not None
            and seen is None
            and pod.addr
            and since is not None
            and self._now() - since >= MUTE_S
        ):
            return (
                f"pod {pod.name} runs, and no agent has heard of its slot for {MUTE_S:.0f} s: see the pod's log, and "
                "whether galaxy-node-agent runs on its node"
            )
        if seen is not None and seen.slot.state == "warming" and seen.slot.reason.endswith(AGAIN):
            return seen.slot.reason
        return ""

    def _tell(self, key: str, size: int, change: Change, pool: Pool) -> None:
        """What a person should know, once."""
        said = ""
        if pool.reason:
            said = f"its pods don't come up ({pool.failures} in a row), the next later: {pool.reason}"
        elif change.create or change.delete:
            said = f"is to have {size}: {change.create} made, {len(change.delete)} deleted"
        if said and said != self._said.get(key):
            namespace, _, digest = key.partition("/")
            level = logging.WARNING if pool.reason else logging.INFO
            log.log(level, "standby pool %s in %s: %s", digest, namespace, said)
        self._said[key] = said

    def _idle_gpu_s(self, key: str) -> float:
        """Counted up to now, at each look."""
        now = time.monotonic()
        seconds, until = self._idle.get(key, (0.0, now))
        gpus = sum(
            seen.slot.gpus
            for pod in self._known.of_pool(key)
            if (seen := self._known.slots.get(pod.uid)) is not None
            and seen.slot.state in ("warming", "ready")
        )
        self._idle[key] = seconds + gpus * (now - until), now
        return self._idle[key][0]
