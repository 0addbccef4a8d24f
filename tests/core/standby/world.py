"""Standby pods in one process: slots with their agent, a ReplicaSet controller, an informer, and orders on their way.

What is on its way may be lost, come late or come twice. Time passes by the test's hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.adoption import Adoption, Plan, Wanted
from kserve_ext.core.standby.facts import Slot, SlotState
from kserve_ext.core.standby.known import NOBODY, Known, StandbyPod

POOL, NODE, ADDR = "default/pool", "node-0", "10.0.0.1"
A, B = RevisionKey("default/a"), RevisionKey("default/b")


@dataclass
class Pod:
    uid: str
    state: SlotState = "ready"
    slot_of: RevisionKey = NOBODY
    labels: RevisionKey = NOBODY
    owned: bool = False
    ended: str = ""
    leaving: bool = False
    hold: str = ""  # held: no ReplicaSet gets it; guarded: nor deletes it


class Order(NamedTuple):
    kind: str  # take or free
    uid: str
    revision: RevisionKey


@dataclass
class World:
    now: float = 1000.0
    pods: dict[str, Pod] = field(default_factory=dict)
    replicas: dict[RevisionKey, int] = field(default_factory=lambda: {A: 0, B: 0})
    #: Of the ReplicaSet's own making, ready or not.
    plain: dict[RevisionKey, list[bool]] = field(default_factory=lambda: {A: [], B: []})
    wanted: dict[RevisionKey, int] = field(default_factory=lambda: {A: 0, B: 0})
    orders: list[Order] = field(default_factory=list)
    replies: list[tuple[Order, bool]] = field(default_factory=list)
    short: int = 0
    rush: bool = False
    made: int = 0
    #: Whether pods can be held; and whether the ReplicaSet controller hears of other numbers of replicas.
    guards: bool = False
    deaf: bool = False
    heard: dict[RevisionKey, int] = field(default_factory=lambda: {A: 0, B: 0})
    #: Pods that it had when it looked last.
    claimed: dict[RevisionKey, int] = field(default_factory=lambda: {A: 0, B: 0})
    #: Pods that served and were deleted as one too many, though there was a place for each.
    lost: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Another autoscaler, which knows what it is told."""
        self.known = Known()
        self.adoptions = {key: Adoption(key, self.known) for key in (A, B)}
        self.replies.clear()
        self.inform()
        self.report()

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            self.made += 1
            self.pods[f"u{self.made}"] = Pod(f"u{self.made}")

    # --- what comes to be known

    def report(self) -> None:
        slots = [
            Slot(f"default/{pod.uid}", pod.uid, "pool", ADDR, "S0", pod.state, pod.slot_of)
            for pod in self.pods.values()
            if not pod.ended
        ]
        self.known.told(NODE, slots, ())

    def inform(self) -> None:
        for uid in self.known.pods.keys() - self.pods.keys():
            self.known.pod(uid, None)
        for uid, pod in self.pods.items():
            seen = StandbyPod(
                f"default/{uid}", uid, POOL, pod.labels, pod.owned, True, pod.ended, pod.leaving, addr=ADDR
            )
            self.known.pod(uid, seen._replace(held=pod.hold == "held", moving=pod.hold != ""))

    # --- what happens by itself

    def control(self) -> None:
        """The ReplicaSet controller, and the kubelet after it."""
        for key in (A, B):
            if not self.deaf:
                self.heard[key] = self.replicas[key]
            ours = [pod for pod in self.pods.values() if pod.labels == key and not pod.leaving]
            for pod in ours:
                pod.owned = pod.owned or pod.hold != "held"
            ours = [pod for pod in ours if not pod.ended]
            if not all(pod.owned for pod in ours):
                continue  # it could not take one of them, and does nothing else
            self.claimed[key] = len(ours) + len(self.plain[key])
            surplus = self.claimed[key] - self.heard[key]
            rightly = self.claimed[key] - self.replicas[key]
            if surplus < 0:
                self.plain[key] += [False] * -surplus
            self.plain[key].sort()  # those that aren't ready go first
            while surplus > 0 and self.plain[key] and not self.plain[key][0]:
                self.plain[key].pop(0)
                surplus -= 1
                rightly -= 1
            for pod in ours[: max(0, surplus)]:  # by their deletion cost
                surplus -= 1
                if pod.hold:
                    continue  # it is refused that
                del self.pods[pod.uid]
                if pod.state == "serving" and rightly <= 0:
                    self.lost.append(pod.uid)
                rightly -= 1
            del self.plain[key][: max(0, surplus)]

    def let_go(self, key: RevisionKey, uids: Iterable[str]) -> None:
        """What settling.py does, and no moment is given to the controller to hear."""
        pods = [self.pods[uid] for uid in uids if uid in self.pods]
        held = [pod for pod in pods if pod.hold == "held"]
        if self.replicas[key] >= self.claimed[key] + len(held) or not self.deaf:
            for pod in held:
                pod.hold = "guarded"
        for pod in pods:
            if pod.hold == "guarded" and pod.owned and self.heard[key] == self.replicas[key]:
                pod.hold = ""

    def obey(self, order: Order) -> bool:
        """The agent, and the slot behind it; whether it was done."""
        pod = self.pods.get(order.uid)
        if pod is None or pod.ended:
            return False
        if order.kind == "free":
            if pod.slot_of == order.revision and pod.state != "draining":
                pod.state = "draining"
            return True
        if pod.slot_of == order.revision and pod.state in ("starting", "serving"):
            return True
        if pod.state != "ready":
            return False
        pod.state, pod.slot_of = "starting", order.revision
        return True

    def step(self, uid: str, goes_well: bool = True) -> None:
        """A slot goes on with what it does."""
        pod = self.pods[uid]
        if pod.state == "starting":
            pod.state = "serving" if goes_well else "failed"
        elif pod.state == "draining":
            pod.state, pod.slot_of = "ready", NOBODY

    def deliver(self, index: int, answer: bool = True) -> None:
        order = self.orders.pop(index)
        done = self.obey(order)
        if answer and order.kind == "take":
            self.replies.append((order, done))

    def answer(self, index: int) -> None:
        order, done = self.replies.pop(index)
        if done:
            self.adoptions[order.revision].assured(order.uid, self.now)
        else:
            self.adoptions[order.revision].refused(order.uid, self.now)

    # --- the autoscaler

    def plan(self, key: RevisionKey, known: bool = True) -> Plan:
        """`known`: how many are wanted."""
        mine = [pod for pod in self.pods.values() if pod.labels == key and not pod.leaving and not pod.ended]
        ready = sum(self.plain[key]) + sum(pod.state == "serving" for pod in mine)
        wanted = Wanted(
            self.wanted[key] if known else None,
            self.replicas[key],
            ready,
            len(self.plain[key]) + len(mine),
            POOL,
            short=self.short,
            rush=self.rush,
        )
        return self.adoptions[key].plan(wanted, self.now)

    def act(self, key: RevisionKey, fails_at: str = "", known: bool = True) -> None:
        """Carries out a plan; `fails_at`: what is not written, and nothing after it; `known`: how many are wanted."""
        plan, adoption = self.plan(key, known), self.adoptions[key]
        # Never more at a time than was decided on: what is taken is not asked for the plain way.
        left = adoption.taken.keys() - {*plan.free, *plan.label, *plan.release} - adoption._roomed
        most = max(self.wanted[key], self.replicas[key], 1 if adoption.is_new(self.now) else 0)
        assert not known or plan.replicas + len(left) <= most
        self.orders += [Order("take", seen.slot.uid, key) for seen in plan.take]
        if fails_at == "release":
            return
        for uid in plan.release:
            if uid in self.pods:
                self.pods[uid].labels, self.pods[uid].owned, self.pods[uid].hold = NOBODY, False, ""
                adoption.released(uid, self.now)
        hold = [
            uid
            for uid in plan.label
            if self.guards and (seen := self.known.pods.get(uid)) and (seen.held or not seen.revision)
        ]
        for uid in hold:
            if uid in self.pods:
                assert self.pods[uid].labels in (key, "")
                self.pods[uid].labels, self.pods[uid].hold = key, "held"
        if fails_at == "scale":
            return
        self.replicas[key] = plan.replicas
        adoption.made_room(plan.label, plan.replicas)
        for uid in hold:
            adoption.labelled(uid, self.now)
        if fails_at == "label":
            return
        for uid in plan.label:
            if (
                uid in self.pods
                and uid not in hold
                and (self.heard[key] == self.replicas[key] or not self.deaf)
            ):
                self.heard[key] = self.replicas[key]
                assert self.replicas[key] > 0
                assert self.pods[uid].labels in (key, "")
                self.pods[uid].labels = key
                adoption.labelled(uid, self.now)
        self.let_go(key, [*hold, *plan.settle])
        for uid in (*plan.free, *plan.release):
            self.orders.append(Order("free", uid, key))
            adoption.freed(uid, self.now)
        for uid in plan.delete:
            self.pods.pop(uid, None)

    def settle(self) -> None:
        """Nothing is lost or late any more, until nothing changes."""
        self.rush = self.deaf = False
        for _ in range(60):
            while self.orders:
                self.deliver(0)
            while self.replies:
                self.answer(0)
            for uid, pod in list(self.pods.items()):
                if pod.ended or pod.state == "failed":
                    del self.pods[uid]  # the pool's keeper
                else:
                    self.step(uid)
            self.plain = {key: [True] * len(ready) for key, ready in self.plain.items()}
            self.control()
            self.inform()
            self.report()
            for key in (A, B):
                self.act(key)
            self.control()
            self.inform()
            self.now += 3.0

    def count(self, key: RevisionKey) -> int:
        """Pods of the revision that serve, or come to."""
        mine = [pod for pod in self.pods.values() if pod.labels == key and not pod.ended and not pod.leaving]
        return len(self.plain[key]) + len(mine)
