"""The keeper of pools: counts for those that keep none, deletes nobody who was taken meanwhile, forgets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from autoscaler_shim.standby.keeper import Keeper
from autoscaler_shim.standby.metrics import Tally
from kserve_ext.api.knative.pods import Unplaced
from kserve_ext.api.standby import names, pods, reading
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.facts import Slot
from kserve_ext.core.standby.known import Known, StandbyPod
from kserve_ext.core.standby.pools import SURPLUS_S, Lack, Pool
from kserve_ext.core.standby.slot import AGAIN
from kserve_ext.kube.client import KubeError

ADDR = "10.0.0.1"
SPEC: dict[str, Any] = {"containers": [{"resources": {"requests": {"cpu": "1"}}}]}
POOL = pods.Pool("0123456789abcdef", "default", {"metadata": {"namespace": "default"}, "spec": SPEC})


class Wish:
    def __init__(self, size: int) -> None:
        self.size = size


class Shape:
    def __init__(self, size: int) -> None:
        self.revision, self.wish, self.pool = RevisionKey("default/a"), Wish(size), POOL
        self.engine = ""


class Shapes:
    def __init__(self, size: int) -> None:
        self.asked = [Shape(size)] if size else []

    def pools(self) -> list[str]:
        return [POOL.key] if self.asked else []

    def of_pool(self, key: str) -> list[Shape]:
        return self.asked if key == POOL.key else []


class Deleting:
    """Whoever is second in line is taken while the first is deleted."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.deleted: list[str] = []

    async def delete(self, uid: str) -> None:
        self.deleted.append(uid)
        for other in self.known.pods.keys() - {uid}:
            self.known.promise(other, RevisionKey("default/a"))


def keeper(
    known: Known, size: int, owns: bool = True, concerned: Callable[[RevisionKey], None] = lambda _: None
) -> tuple[Keeper, Deleting]:
    deleting, nothing = Deleting(known), Any
    made: Any = Keeper
    found: Keeper = made(
        nothing,
        known,
        deleting,
        Shapes(size),
        Tally(),
        lambda _: owns,
        lambda _: True,
        lambda: False,
        concerned,
    )
    return found, deleting


def stand_by(known: Known, *uids: str) -> None:
    for uid in uids:
        known.pod(uid, StandbyPod(f"default/{uid}", uid, POOL.key, addr=ADDR))
    known.told("n", [Slot(f"default/{uid}", uid, POOL.digest, ADDR, "S0", "ready") for uid in uids], ())


def test_a_replica_that_does_not_keep_the_pool_knows_what_it_lacks() -> None:
    known = Known()
    stand_by(known, "a")
    made, _ = keeper(known, 3, owns=False)
    asyncio.run(made._keep(POOL.key))
    assert made.short(POOL.key) == 2


def test_a_pod_that_was_taken_meanwhile_is_not_deleted_as_surplus() -> None:
    known = Known()
    stand_by(known, "a", "b")
    made, deleting = keeper(known, 0)
    made._pools[POOL.key] = Pool(_surplus_since=-SURPLUS_S)
    asyncio.run(made._keep(POOL.key))
    assert len(deleting.deleted) == 1


def test_revisions_hear_why_no_pod_of_their_pool_comes_up_and_when_one_has() -> None:
    known, told = Known(), list[RevisionKey]()
    made, _ = keeper(known, 1, owns=False, concerned=told.append)
    known.pod("a", StandbyPod("default/a", "a", POOL.key, addr=ADDR))
    slot = Slot("default/a", "a", POOL.digest, ADDR, "S0", "warming", reason="it has just begun")
    for reason in ("it has just begun", f"the zygote ended; {AGAIN}"):
        known.told("n", [slot._replace(reason=reason)], ())
        asyncio.run(made._keep(POOL.key))
    assert made.lack(POOL.key) == Lack(f"the zygote ended; {AGAIN}", True, False)
    assert told == ["default/a"]
    stand_by(known, "a")
    asyncio.run(made._keep(POOL.key))
    assert made.lack(POOL.key) is None
    assert told == ["default/a"] * 2


@pytest.mark.parametrize(
    ("phase", "met", "failures"), [("Succeeded", True, 0), ("Succeeded", False, 1), ("Failed", True, 1)]
)
def test_a_slot_that_ends_because_a_secret_has_changed_is_no_failure_of_its_pool(
    phase: str, met: bool, failures: int
) -> None:
    """However soon; what never was a slot may be an image that does nothing."""
    known = Known()
    made, deleting = keeper(known, 1, owns=True)
    made._pools[POOL.key] = Pool()
    if met:
        stand_by(known, "a")
        asyncio.run(made._keep(POOL.key))
        known.told("n", [], ())
    labels = {names.POOL_LABEL: POOL.digest}
    metadata = {"namespace": "default", "name": "a", "uid": "a", "labels": labels}
    ended = {"metadata": metadata, "status": {"phase": phase, "podIP": ADDR}}
    known.pod("a", reading.fact(reading.slim(ended)))
    made._pools[POOL.key]._retry_at = float("inf")  # no other is made
    asyncio.run(made._keep(POOL.key))
    assert deleting.deleted == ["a"]
    assert made.figures()[0].failures == failures


def test_a_pod_that_runs_and_that_no_agent_has_heard_of_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known()
    made, _ = keeper(known, 1, owns=False)
    known.pod("a", StandbyPod("default/a", "a", POOL.key, addr=ADDR))
    asyncio.run(made._keep(POOL.key))
    assert made.lack(POOL.key) is None
    monkeypatch.setattr("autoscaler_shim.standby.keeper.MUTE_S", 0.0)
    asyncio.run(made._keep(POOL.key))
    lack = made.lack(POOL.key)
    assert lack is not None
    assert "pod default/a runs, and no agent has heard of its slot" in lack.why
    stand_by(known, "a")
    asyncio.run(made._keep(POOL.key))
    assert made.lack(POOL.key) is None


def test_a_pod_that_waits_for_room_beside_one_in_use_is_not_amiss() -> None:
    known = Known()
    made, _ = keeper(known, 1, owns=False)
    stand_by(known, "a")
    known.promise("a", RevisionKey("default/a"))
    waits = StandbyPod("default/b", "b", POOL.key, scheduled=False, trouble="no node: 0/1 nodes")
    known.pod("b", waits)
    asyncio.run(made._keep(POOL.key))
    lack = made.lack(POOL.key)
    assert lack == Lack("no node: 0/1 nodes", True, True)
    assert not lack.amiss
    assert "in use" in lack.words


def test_which_pods_give_way_is_carried_out_by_who_keeps_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kserve_ext.core.standby.giving_way.AFTER_S", 0.0)
    for owns in (True, False):
        known = Known()
        stand_by(known, "a", "b")
        made, deleting = keeper(known, 2, owns=owns)
        made._unscheduled = lambda: {
            "default/plain": Unplaced("0/1 nodes are available: 1 Insufficient cpu.")
        }
        asyncio.run(made.give_way())
        assert len(deleting.deleted) == int(owns)
        assert made._holds == {POOL.key: "default/plain"}


def test_a_round_is_carried_out_whole_though_who_waits_has_a_node_by_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kserve_ext.core.standby.giving_way.AFTER_S", 0.0)
    known = Known()
    for name in "ab":
        known.pod(name, StandbyPod(f"default/{name}", name, POOL.key, scheduled=False))
    made, _ = keeper(known, 2)
    said = {"default/plain": Unplaced("0/1 nodes are available: 1 Insufficient cpu.")}
    deleted: list[str] = []

    class Server:
        async def delete(self, uid: str) -> None:
            deleted.append(uid)
            said.clear()

    pods_: Any = Server()
    made._unscheduled, made._pods = lambda: said, pods_
    asyncio.run(made.give_way())
    assert deleted == ["a", "b"]


def test_the_next_gives_way_when_the_last_is_gone_and_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kserve_ext.core.standby.giving_way.AFTER_S", 0.0)
    monkeypatch.setattr("kserve_ext.core.standby.giving_way.NEXT_S", 0.0)
    known = Known()
    nodes = {"a": "n1", "b": "n1", "c": "n2", "d": "n2", "e": "n3", "f": "n3", "g": "n3"}
    for name, node in nodes.items():
        known.pod(name, StandbyPod(f"default/{name}", name, POOL.key, made_at=1.0, node=node))
    made, deleting = keeper(known, 7)
    made._unscheduled = lambda: {"default/plain": Unplaced("1 Insufficient cpu.", 2)}
    made._rooms = lambda: {"n3": 1}
    asyncio.run(made.give_way())
    assert deleting.deleted == ["a"]
    known.promised.clear()
    known.pod("a", known.pods["a"]._replace(leaving=True))
    asyncio.run(made.give_way())
    assert deleting.deleted == ["a"], "it isn't gone"
    known.pod("a", None)
    asyncio.run(made.give_way())
    assert deleting.deleted == ["a", "b"]


class Admitting:
    """The API server: what a pod's class makes of it."""

    def __init__(self, said: dict[str, Any] | KubeError) -> None:
        self.said = said
        self.made: list[Any] = []

    async def create(self, kind: Any, pod: Any, params: Mapping[str, str] | None = None) -> Any:
        if params == {"dryRun": "All"}:
            if isinstance(self.said, KubeError):
                raise self.said
            return {**pod, "spec": {**pod["spec"], **self.said}}
        self.made.append(pod)
        return {**pod, "metadata": {**pod["metadata"], "uid": f"u{len(self.made)}"}}


@pytest.mark.parametrize(
    ("said", "makes"),
    [
        ({"priority": 1000, "preemptionPolicy": "PreemptLowerPriority"}, False),
        ({"priority": 1000, "preemptionPolicy": "Never"}, True),
        (KubeError(400, "BadRequest", "a webhook does not support dry run"), True),
    ],
)
def test_no_standby_pod_is_made_that_would_evict_others(said: Any, makes: bool) -> None:
    shape = Shape(1)
    spec = {**SPEC, "priorityClassName": "high"}
    metadata = {"namespace": "default", "labels": {}}
    shape.pool = pods.Pool(POOL.digest, "default", {"metadata": metadata, "spec": spec})
    known = Known()
    made, _ = keeper(known, 1)
    made._shapes.asked = [shape]  # type: ignore[attr-defined]
    client: Any = Admitting(said)
    made._client = client
    asyncio.run(made._keep(POOL.key))
    assert bool(client.made) is makes
    lack = made.lack(POOL.key)
    assert (lack is not None) is not makes
    if lack is not None:
        assert "WouldEvict: PriorityClass high" in lack.words


def test_nothing_is_kept_of_pods_and_pools_that_are_no_more() -> None:
    known = Known()
    stand_by(known, "a")
    known.promise("a", RevisionKey("default/a"))
    made, _ = keeper(known, 0)
    asyncio.run(made._keep(POOL.key))
    made.figures()
    known.pod("a", None)
    known.told("n", [], ())
    made.forget()
    kept = (
        made._used,
        made._met,
        made._slotless,
        made._said,
        made._short,
        made._idle,
        made._pools,
        made._lacks,
    )
    assert not any(kept)


def test_a_label_alone_makes_no_pod_a_member_of_another_namespaces_pool() -> None:
    labels = {"kserve-galaxy.io/standby-pool": POOL.digest}
    theirs = {"metadata": {"namespace": "evil", "name": "p", "uid": "x", "labels": labels}}
    assert reading.fact(reading.slim(theirs)).pool != POOL.key
