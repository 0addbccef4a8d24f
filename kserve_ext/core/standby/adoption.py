"""One revision and its standby pods: which slots it takes, when they become its pods, what is scaled the plain way.

Asked again at every change with what is known then, it says what to do next; whatever gets lost on the way is found
missing the next time, so that a successor which remembers nothing comes to the same. It must hold that

- pods asked for the plain way and slots taken add up to what is wanted, never more;
- a pod gets the revision's labels once it serves, and its ReplicaSet gets the pod when replicas have room for it:
  the labels come after that number, or with the pod held back until then;
- what is taken serves within a time, or is given back and made up for the plain way.

What is remembered is only what nobody else says: orders under way, since when something is so, and set-backs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from kserve_ext.core.backoff import pause_s
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.known import Known, Place, Seen, StandbyPod, choose
from kserve_ext.core.standby.taken import ORDER_S, Taken

#: A slot that was refused is not asked for again so soon; what is known of it is about to be otherwise.
REFUSED_S: Final = 5.0
#: Labels that we have written, until the API server's own copy has them.
WRITTEN_S: Final = 15.0
#: Adoption waits for others that are starting, but no longer.
BEHIND_S: Final = 5.0
#: A pod with our labels that serves nobody, or that no ReplicaSet has taken; the word may be on its way.
ODD_S: Final = 10.0
SETBACK_S: Final = (15.0, 600.0)
#: Who has just begun, and finds pods, has yet to hear of requests, whatever the status says: one is kept for so long.
NEW_S: Final = 5.0


class Wanted(NamedTuple):
    """What is asked for, and what the API server has of it."""

    pods: int | None  # None: as many as there are
    replicas: int
    ready: int  # pods of the revision that are, with labels
    there: int  # pods with its labels, ready or not
    pool: str = ""  # "" = no standby pod fits
    unfit: str = ""
    lesser: tuple[str, ...] = ()  # pools of lower levels that fit as well, the best first
    engine: str = ""  # that serves it, where it sleeps
    model: str = ""  # what nodes call it
    short: int = 0  # pods that the pool lacks
    adoptable: bool = True  # what the labels have to be is known
    rush: bool = False  # other revisions are being started
    start_s: float = 600.0


class Plan(NamedTuple):
    """What to do, in this order. Whatever can't be done is planned again."""

    take: tuple[Seen, ...] = ()
    release: tuple[str, ...] = ()  # uids: labels off, before replicas go down
    victims: tuple[str, ...] = ()  # uids: are to go first when replicas go down
    replicas: int = 0
    label: tuple[
        str, ...
    ] = ()  # uids: once replicas are as above, and their ReplicaSet's controller knows; or held
    settle: tuple[
        str, ...
    ] = ()  # uids: have their labels and their place, and are to become the ReplicaSet's
    free: tuple[str, ...] = ()  # uids: back to the pool
    delete: tuple[str, ...] = ()  # uids: hopeless
    missed: int = 0  # pods that found no slot just now
    why: str = ""  # they didn't: a word for metrics
    recheck_s: float | None = None


@dataclass(slots=True)
class Adoption:
    revision: RevisionKey
    known: Known
    #: By uid: slots of ours without our labels.
    taken: dict[str, Taken] = field(default_factory=dict)
    #: When they were written here.
    _labelled: dict[str, float] = field(default_factory=dict)
    _released: dict[str, float] = field(default_factory=dict)
    #: Freed by us; not ours again whatever late words say.
    _freed: dict[str, float] = field(default_factory=dict)
    _refused: dict[str, float] = field(default_factory=dict)
    #: They couldn't start it: to be deleted, whatever else they say.
    _hopeless: set[str] = field(default_factory=set)
    #: Since when something is not as it should be of what has our labels.
    _odd: dict[str, float] = field(default_factory=dict)
    #: Taken, and counted in replicas already; and how many replicas there were then.
    _roomed: set[str] = field(default_factory=set)
    _room_at: int = 0
    _setbacks: int = 0
    _unanswered: int = 0  # in a row
    _plain_until: float = 0.0
    _missed_for: int = 0
    #: Until then it doesn't go to zero; None: nothing was planned yet.
    _new_until: float | None = None
    hits: int = 0

    # --- what came of it

    def assured(self, uid: str, now: float) -> None:
        """The agent has given it to us; or it answers others, and will come to this order."""
        if uid in self.taken:
            self.taken[uid].sure_at = now

    def refused(self, uid: str, now: float) -> None:
        """Certainly not ours: somebody else has it, or it isn't there."""
        self._drop(uid)
        self._refused[uid] = now

    def unanswered(self, uid: str, now: float) -> bool:
        """Its agent doesn't answer: another is asked. Should it have the revision after all, it will say so.

        False: it is waited for no more, or has said so already.
        """
        if uid not in self.taken or self.taken[uid].confirmed:
            return False
        self.refused(uid, now)
        self._unanswered += 1
        if self._unanswered > 1:  # requests don't wait for a third
            self._set_back(now)
        return True

    def made_room(self, uids: Iterable[str], replicas: int) -> None:
        """Replicas are written, with a place for each of these."""
        self._roomed |= self.taken.keys() & set(uids)
        self._room_at = replicas

    def labelled(self, uid: str, now: float) -> None:
        self._drop(uid)
        self._labelled[uid] = now

    @property
    def held(self) -> list[str]:
        """Uids that have labels and wait for a place."""
        return [uid for uid in self.taken if self._held(uid)]

    def is_new(self, now: float) -> bool:
        """There were pods when it began, a moment ago."""
        return self._new_until is not None and now < self._new_until

    def astray(self, uid: str) -> None:
        """It is held for what is no more: needs other labels."""
        self._labelled.pop(uid, None)

    def released(self, uid: str, now: float) -> None:
        self._drop(uid)
        self._labelled.pop(uid, None)
        self._released[uid] = now

    def freed(self, uid: str, now: float) -> None:
        """It was told to go back."""
        self._drop(uid)
        self._freed[uid] = now

    def close(self) -> None:
        """Somebody else's from now on: what is promised here is nobody's."""
        for uid in list(self.taken):
            self._drop(uid)

    # --- what to do

    def plan(self, wanted: Wanted, now: float) -> Plan:
        delete = self._observe(wanted, now)
        mine, idle, orphans, settle = self._with_labels(now)
        serving = [uid for uid, taken in self.taken.items() if taken.serving_since is not None]
        starting = [uid for uid in self.taken if uid not in serving]
        if wanted.replicas < self._room_at:
            self._roomed.clear()
        covered = wanted.replicas + len(self.taken.keys() - self._roomed - self._placed(wanted))
        if self._new_until is None:
            self._new_until = now + NEW_S if covered else now
        least = min(1, covered) if self.is_new(now) else 0
        pods = covered if wanted.pods is None else max(wanted.pods, least)
        lacking = pods - covered
        take: list[Seen] = []
        why = ""
        if lacking > 0:
            take, why = self._take(wanted, lacking, now)
            starting += [seen.slot.uid for seen in take]
        free, unlabel = self._too_many(starting, serving, max(0, -lacking), pods, wanted.ready)
        starting = [uid for uid in starting if uid not in free]
        serving = [uid for uid in serving if uid not in free and uid not in unlabel]
        adopt = [uid for uid in serving if self._may_adopt(uid, wanted, now)]
        waiting = len(serving) - len(adopt)
        # Those that wait for their labels take no pod away from those that are there.
        replicas = max(pods - len(starting) - waiting, min(wanted.replicas, pods - len(starting)), 0)
        shrinks = wanted.replicas - replicas
        # Who goes back stops serving; of others it is the unready ones that a ReplicaSet deletes first.
        spared = wanted.ready - pods if pods else shrinks
        release = mine[: max(0, min(shrinks, wanted.short, spared))] if shrinks > 0 else []
        victims = mine[len(release) : max(0, shrinks)] if replicas else ()
        release += unlabel
        missed = self._count_missed(lacking - len(take) if lacking > 0 else 0)
        return Plan(
            take=tuple(take),
            release=tuple(release),
            victims=tuple(victims),
            replicas=replicas,
            label=(*adopt[:replicas], *(orphans if wanted.adoptable else ())),
            settle=tuple(settle),
            free=(*free, *self._still_ours()),
            delete=(*delete, *idle),
            missed=missed,
            why=why if missed else "",
            recheck_s=self._recheck_s(wanted, now),
        )

    # --- inside

    def _observe(self, wanted: Wanted, now: float) -> list[str]:
        """Brings what is remembered up to what is known; uids of pods that can't be helped."""
        self._hopeless &= self.known.pods.keys()
        for uid in self.known.of_revision(self.revision):
            seen = self.known.slots.get(uid)
            if seen is not None and seen.slot.revision == self.revision and not seen.away:
                self._hear(uid, seen, self.known.pods.get(uid), now)
        for uid, taken in list(self.taken.items()):
            seen, pod = self.known.slots.get(uid), self.known.pods.get(uid)
            verdict = taken.verdict(self.revision, seen, pod, wanted.start_s, now)
            if verdict == "ours":
                continue
            self._drop(uid)
            # Requests have waited for an order that was lost: its agent may be as silent to the next.
            if verdict in ("failed", "given back") or (verdict == "lost" and taken.unheard(now)):
                self._set_back(now)
            if verdict == "failed":
                self._hopeless.add(uid)
        for memory, most_s in (
            (self._labelled, WRITTEN_S),
            (self._released, WRITTEN_S),
            (self._freed, ORDER_S),
            (self._refused, REFUSED_S),
        ):
            for uid, at in list(memory.items()):
                if now - at >= most_s or uid not in self.known.pods:
                    del memory[uid]
        return [uid for uid in sorted(self._hopeless) if not self.known.pods[uid].leaving]

    def _hear(self, uid: str, seen: Seen, pod: StandbyPod | None, now: float) -> None:
        """A slot says that it has our revision."""
        if seen.slot.state not in ("starting", "serving") or pod is None or pod.leaving or pod.ended:
            return
        if (
            (pod.revision == self.revision and not pod.held)  # held: it may have no place yet
            or uid in self._labelled
            or uid in self._released
            or uid in self._freed
        ):
            return
        if uid in self._hopeless:
            return
        taken = self.taken.get(uid)
        if taken is None:
            taken = self.taken[uid] = Taken(now, now)
            self.known.promise(uid, self.revision)
        if taken.heard(seen.slot.state == "serving", now):
            self.hits += 1
            self._setbacks = self._unanswered = 0

    def _take(self, wanted: Wanted, count: int, now: float) -> tuple[list[Seen], str]:
        if not wanted.pool:
            return [], "unfit"
        if now < self._plain_until:
            return [], "set-back"
        busy: dict[str, int] = {}
        for uid in (*self.taken, *self.known.of_revision(self.revision)):
            seen = self.known.slots.get(uid)
            if seen is not None:
                busy[seen.node] = busy.get(seen.node, 0) + 1
        free: dict[Place, Mapping[str, Seen]] = {}
        for pool in (wanted.pool, *wanted.lesser):
            free |= self.known.free(pool)
        chosen = choose(free, count, wanted.model, self.known.models, busy, self._refused, wanted.engine)
        for seen in chosen:
            uid = seen.slot.uid
            self.known.promise(uid, self.revision)
            self.taken[uid] = Taken(now, now)
            self._freed.pop(uid, None)
        return chosen, "" if len(chosen) == count else "empty"

    def _too_many(
        self, starting: list[str], serving: list[str], surplus: int, pods: int, ready: int
    ) -> tuple[list[str], list[str]]:
        """Of the taken: those that go back to the pool, and those that lose their labels before."""
        free = self._newest(starting)[:surplus]
        surplus -= len(free)
        # So that nobody is worse off without those that serve beside them; held ones are among the ready.
        held = [uid for uid in serving if self._held(uid)]
        enough = ready - len(held) >= pods
        spare = surplus if enough else len(serving) - pods
        gone = self._newest(serving)[: max(0, min(spare, surplus))]
        return free + [uid for uid in gone if uid not in held], [uid for uid in gone if uid in held]

    def _with_labels(self, now: float) -> tuple[list[str], list[str], list[str], list[str]]:
        """Those that serve; have served nobody for long; are no ReplicaSet's; are about to be one's.

        Held ones are not among them until they have a place.
        """
        serving: list[str] = []
        idle: list[str] = []
        orphans: list[str] = []
        settle: list[str] = []
        odd: dict[str, float] = {}
        for uid in self.known.of_revision(self.revision):
            seen, pod = self.known.slots.get(uid), self.known.pods.get(uid)
            if (
                pod is None
                or pod.leaving
                or pod.ended
                or pod.revision != self.revision
                or uid in self._released
                or uid in self.taken
            ):
                continue
            if pod.moving:
                settle.append(uid)
            heard = seen is not None and not seen.away
            if (
                heard
                and seen is not None
                and seen.slot.state == "serving"
                and seen.slot.revision == self.revision
            ):
                serving.append(uid)
            elif heard and seen is not None and seen.slot.state == "ready":
                odd[uid] = self._odd.get(uid, now)
                if now - odd[uid] >= ODD_S:
                    idle.append(uid)
                continue
            if not (pod.owned or pod.moving) and uid not in self._labelled:
                odd[uid] = self._odd.get(uid, now)
                if now - odd[uid] >= ODD_S:
                    orphans.append(uid)
                    odd[uid] = now
        self._odd = odd
        return serving, idle, orphans, settle

    def _held(self, uid: str) -> bool:
        """It has the labels already."""
        pod = self.known.pods.get(uid)
        return pod is not None and pod.held and pod.revision == self.revision

    def _placed(self, wanted: Wanted) -> set[str]:
        """Held ones that replicas have a place for, beside the other pods: whoever wrote that may be gone."""
        held = sorted(self.held, key=lambda uid: (uid not in self._roomed, uid))
        others = max(0, wanted.there - len(held))
        return set(held[: max(0, wanted.replicas - others)])

    def _still_ours(self) -> list[str]:
        """Those whose labels we have taken off: they go back to the pool, and again until the slot says so."""
        return [
            uid
            for uid in self._released
            if (seen := self.known.slots.get(uid)) is not None
            and seen.slot.revision == self.revision
            and seen.slot.state in ("starting", "serving")
            and uid not in self._freed
        ]

    def _may_adopt(self, uid: str, wanted: Wanted, now: float) -> bool:
        since = self.taken[uid].serving_since
        if not wanted.adoptable or since is None:
            return False
        if self._held(uid):  # its ReplicaSet waits
            return True
        return not wanted.rush or now - since >= BEHIND_S

    def _newest(self, uids: list[str]) -> list[str]:
        return sorted(uids, key=lambda uid: (-self.taken[uid].since, uid))

    def _set_back(self, now: float) -> None:
        self._setbacks += 1
        self._plain_until = now + pause_s(self._setbacks, *SETBACK_S, 1.0)

    def _count_missed(self, missing: int) -> int:
        """Each is counted once, however often it is planned while it lasts."""
        new, self._missed_for = max(0, missing - self._missed_for), missing
        return new

    def _recheck_s(self, wanted: Wanted, now: float) -> float | None:
        times = [self._new_until] if self._new_until is not None and self.is_new(now) else []
        for taken in self.taken.values():
            times.append(taken.look_at(wanted.start_s))
            since = taken.serving_since
            if wanted.rush and since is not None and now < since + BEHIND_S:  # later others say when it can
                times.append(since + BEHIND_S)
        times += [at + ORDER_S for at in self._freed.values()]
        # Whether it has become its ReplicaSet's; usually that is told long before.
        times += [at + WRITTEN_S for at in self._labelled.values()]
        times += [at + ODD_S for at in self._odd.values()]
        return max(0.05, min(times) - now) if times else None

    def _drop(self, uid: str) -> None:
        self.taken.pop(uid, None)
        self._roomed.discard(uid)
        self.known.take_back(uid, self.revision)
