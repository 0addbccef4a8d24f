"""What an autoscaler knows of standby pods: what node agents say of slots, what the API server says of their pods.

The two come by different ways and neither waits for the other, so they are kept apart and joined by the pod's uid.
Agents are believed about slots, the API server about labels, owners and ends. A slot is promised to one revision
at a time here; among several autoscalers its agent decides.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Final, NamedTuple

from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.facts import Level, Slot

NOBODY = RevisionKey("")
#: So long a slot that starts is waited for by what can wait.
RUSH_S: Final = 5.0


class StandbyPod(NamedTuple):
    """As the API server has it."""

    name: str  # namespace/name
    uid: str
    pool: str  # namespace/digest
    revision: RevisionKey = NOBODY  # by its labels
    owned: bool = False  # a ReplicaSet controls it
    ready: bool = False
    ended: str = ""  # why none of its processes runs any more; "" = it hasn't ended
    done: bool = False  # it has ended without an error: what it is for is over
    leaving: bool = False  # it is being deleted
    made_at: float = 0.0  # unix seconds
    scheduled: bool = True
    trouble: str = ""  # what the kubelet or the scheduler complains of
    addr: str = ""  # its IP
    held: bool = False  # no ReplicaSet can have it yet, and the one that waits for it does nothing else
    moving: bool = False  # held, or protected from its ReplicaSet until that knows of it
    node: str = ""  # "" = none yet


class Seen(NamedTuple):
    """A slot, the agent that has told of it, and whether that can be heard right now."""

    slot: Slot
    node: str
    away: bool = False


class Place(NamedTuple):
    """Where slots that can be taken are alike."""

    node: str
    level: Level
    asleep: tuple[str, ...] = ()  # engines that can be woken in each of them
    pool: str = ""


#: Slots that can be taken, by uid, the first of each place in the order in which they came to be.
Free = Mapping[Place, Mapping[str, Seen]]


class Known:
    def __init__(self) -> None:
        self.slots: dict[str, Seen] = {}  # by uid
        self.pods: dict[str, StandbyPod] = {}  # by uid
        #: By node: what its models are called.
        self.models: dict[str, frozenset[str]] = {}
        #: By uid, until whoever promised it knows better.
        self.promised: dict[str, RevisionKey] = {}
        #: Slots that are about to serve, and since when that was first looked at.
        self.starting: dict[str, float | None] = {}
        #: Nodes that are to get nothing new (cordoned).
        self.closed: set[str] = set()
        self._free: dict[str, dict[Place, dict[str, Seen]]] = {}  # by pool
        self._free_at: dict[str, tuple[str, Place]] = {}
        self._of_node: dict[str, set[str]] = {}
        self._of_revision: dict[RevisionKey, set[str]] = {}
        self._of_pool: dict[str, set[str]] = {}

    # --- what is told

    def told(
        self, node: str, slots: Iterable[Slot], models: Iterable[str], closed: bool = False
    ) -> set[RevisionKey]:
        """All slots of a node; the revisions that this concerns."""
        if closed != (node in self.closed):
            (self.closed.add if closed else self.closed.discard)(node)
            for uid in self._of_node.get(node, ()):
                self._look(uid)
        before = self._of_node.get(node, set())
        found = {slot.uid: slot for slot in slots}
        concerned: set[RevisionKey] = set()
        for uid in before - found.keys():
            concerned |= self._slot(uid, None)
        for uid, slot in found.items():
            seen = Seen(slot, node)
            if self.slots.get(uid) != seen:  # of some hundred, most are as they were
                concerned |= self._slot(uid, seen)
        self._of_node[node] = set(found)
        self.models[node] = frozenset(models)
        return concerned

    def away(self, node: str) -> None:
        """Its agent can't be heard. Its slots are what they were, as far as anybody knows; none can be taken."""
        for uid in self._of_node.get(node, ()):
            self.slots[uid] = self.slots[uid]._replace(away=True)
            self._look(uid)

    def pod(self, uid: str, pod: StandbyPod | None) -> set[RevisionKey]:
        """The API server has it so; None: not any more."""
        before = self.pods.pop(uid, None)
        if pod is not None:
            self.pods[uid] = pod
        for one in (before, pod):
            if one is not None:
                self._index(uid, one.revision)
                self._of_pool.setdefault(one.pool, set()).add(uid)
        self._look(uid)
        concerned = {one.revision for one in (before, pod) if one is not None}
        seen = self.slots.get(uid)
        if seen is not None:
            concerned.add(seen.slot.revision)
        if uid in self.promised:
            concerned.add(self.promised[uid])
        return concerned - {NOBODY}

    def promise(self, uid: str, revision: RevisionKey) -> None:
        """To one revision at a time."""
        self.promised[uid] = revision
        self._look(uid)

    def take_back(self, uid: str, revision: RevisionKey) -> None:
        """A promise, if it is still this revision's."""
        if self.promised.get(uid) == revision:
            del self.promised[uid]
            self._look(uid)

    # --- what is known

    def rush(self, now: float) -> bool:
        """Slots are about to serve, so that the machine has better things to do than what can wait.

        For a while each: one that loads for minutes, or starts for ever, holds up nobody.
        """
        for uid, since in self.starting.items():
            if since is None:
                self.starting[uid] = since = now
            if now - since < RUSH_S:
                return True
        return False

    def of_revision(self, revision: RevisionKey) -> list[str]:
        """Uids of what has its labels, or a slot that has it."""
        return sorted(uid for uid in self._of_revision.get(revision, ()) if self._has(uid, revision))

    def of_pool(self, pool: str) -> list[StandbyPod]:
        found = (self.pods.get(uid) for uid in sorted(self._of_pool.get(pool, ())))
        return [pod for pod in found if pod is not None]

    def pools(self) -> list[str]:
        return sorted({pod.pool for pod in self.pods.values()})

    def free(self, pool: str) -> Free:
        """Slots that can be taken. One whose pod the API server hasn't told of yet can't."""
        return self._free.get(pool, {})

    def sleepless(self, pool: str, engine: str) -> str:
        """Why this engine sleeps in none of the pool's slots that can be taken; "" = it does, or none can be."""
        places = self.free(pool)
        if not places or any(engine in place.asleep for place in places):
            return ""
        slots = (next(iter(found.values())).slot for found in places.values())
        return next((slot.reason for slot in slots if slot.reason), f"{engine} is none of its engines")

    def strays(self, exists: Callable[[RevisionKey], bool]) -> tuple[list[str], list[str]]:
        """Of revisions that are no more: uids of slots to be made free, and of pods that nobody will take away."""
        free, delete = [], []
        for uid, seen in self.slots.items():
            slot, pod = seen.slot, self.pods.get(uid)
            if slot.state not in ("starting", "serving") or seen.away or pod is None or pod.revision:
                continue
            if slot.revision and not exists(slot.revision):
                free.append(uid)
        for uid, pod in self.pods.items():
            if pod.revision and not (pod.owned or pod.leaving) and not exists(pod.revision):
                delete.append(uid)
        return free, delete

    # --- inside

    def _slot(self, uid: str, seen: Seen | None) -> set[RevisionKey]:
        before = self.slots.pop(uid, None)
        if seen is not None:
            self.slots[uid] = seen
            self._index(uid, seen.slot.revision)
        self._look(uid)
        concerned = {one.slot.revision for one in (before, seen) if one is not None}
        if uid in self.promised:
            concerned.add(self.promised[uid])
        if uid in self.pods:
            concerned.add(self.pods[uid].revision)
        return concerned - {NOBODY}

    def _look(self, uid: str) -> None:
        """Whether it can be taken now, and where that is kept."""
        seen, pod = self.slots.get(uid), self.pods.get(uid)
        here = seen is not None and not seen.away
        if here and seen is not None and seen.slot.state == "starting":
            self.starting.setdefault(uid, None)
        else:
            self.starting.pop(uid, None)
        if uid in self._free_at:
            pool, place = self._free_at.pop(uid)
            del self._free[pool][place][uid]
            if not self._free[pool][place]:
                del self._free[pool][place]
        if seen is None or pod is None or not here or uid in self.promised or seen.slot.state != "ready":
            return
        if seen.node in self.closed:
            return
        # Requests would go to the address that the slot says. It is a user's process: only its own pod's will do.
        if not (pod.revision or pod.leaving or pod.ended) and seen.slot.addr == pod.addr:
            place = Place(seen.node, seen.slot.level, seen.slot.asleep, pod.pool)
            self._free.setdefault(pod.pool, {}).setdefault(place, {})[uid] = seen
            self._free_at[uid] = pod.pool, place

    def _index(self, uid: str, revision: RevisionKey) -> None:
        """Left as they are when it goes; whoever reads looks whether it is still so, and forgets what isn't."""
        if revision:
            self._of_revision.setdefault(revision, set()).add(uid)

    def _has(self, uid: str, revision: RevisionKey) -> bool:
        seen, pod = self.slots.get(uid), self.pods.get(uid)
        return (seen is not None and seen.slot.revision == revision) or (
            pod is not None and pod.revision == revision
        )

    def forget(self) -> None:
        """Drops what is kept of slots and pods that are no more; now and then."""
        for uid, seen in list(self.slots.items()):
            if seen.away and uid not in self.pods:  # its node has gone, and nobody is left to say so
                self._slot(uid, None)
                self._of_node[seen.node].discard(uid)
        for node in [node for node, uids in self._of_node.items() if not uids]:
            del self._of_node[node]
            self.models.pop(node, None)
            self.closed.discard(node)
        for index in (self._of_revision, self._of_pool):
            for key, uids in list(index.items()):
                alive = {uid for uid in uids if uid in self.slots or uid in self.pods}
                if index is self._of_revision:
                    alive = {uid for uid in alive if self._has(uid, RevisionKey(key))}
                if alive:
                    index[key] = alive  # type: ignore[index]
                else:
                    del index[key]  # type: ignore[arg-type]


#: How much of a start is still before a slot of this level, for whom it can't be woken: sleepers are for others.
_BEFORE_IT: Final[Mapping[Level, int]] = {"S1": 0, "S0": 1, "S2": 2}


def choose(
    free: Free,
    count: int,
    model: str,
    models: Mapping[str, frozenset[str]],
    busy: Mapping[str, int],
    without: Container[str] = (),
    engine: str = "",
) -> list[Seen]:
    """The best of them: where its engine sleeps, where the model is, what has most of a start behind it, and not all
    on one node.

    `busy`: by node, how many slots this revision has there; `without`: uids that are not to be had; `engine`: its
    own, where that sleeps.
    """
    left = {place: iter(slots.items()) for place, slots in free.items()}
    used = dict(busy)
    chosen: list[Seen] = []
    while left and len(chosen) < count:
        best = min(
            left,
            key=lambda place: (
                not (engine and engine in place.asleep),
                model not in models.get(place.node, ()) if model else False,
                _BEFORE_IT[place.level],
                used.get(place.node, 0),
                place.node,
            ),
        )
        uid, seen = next(left[best], ("", None))
        if seen is None:
            del left[best]
            continue
        if uid in without:
            continue
        chosen.append(seen)
        used[best.node] = used.get(best.node, 0) + 1
    return chosen
