"""Filter, score and the reasons of placement; and the partition's account of starts under way."""

from __future__ import annotations

from kserve_ext.core.facts import Command, Model, NodeStatus, Resources, Revision, Scale
from kserve_ext.core.ids import InstanceID, NodeID, RevisionKey
from kserve_ext.core.schedule.partition import Partition
from kserve_ext.core.schedule.placement import Candidate, choose, why_not


def revision(
    cpu: int = 1000, memory: int = 512, *, key: str = "default/m-00001", uri: str = "pvc://m"
) -> Revision:
    return Revision(
        key=RevisionKey(key),
        service="default/m",
        generation=1,
        command=Command(argv=("serve",), zygote="runtimes.vllm_pd"),
        model=Model(uri=uri, path="/models/m"),
        needs=Resources(cpu_milli=cpu, memory_mib=memory),
        scale=Scale(),
    )


def status(
    name: str,
    free: Resources = Resources(4000, 8192),
    *,
    capacity: Resources = Resources(4000, 8192),
    seq: int = 1,
    incarnation: int = 1,
    models: tuple[str, ...] = (),
    slots: tuple[tuple[str, int], ...] = (),
    accepting: bool = True,
) -> NodeStatus:
    return NodeStatus(
        NodeID(name), f"{name}:1", incarnation, seq, capacity, free, slots, models, accepting=accepting
    )


def candidate(*args: object, **kwargs: object) -> Candidate:
    s = status(*args, **kwargs)  # type: ignore[arg-type]
    return Candidate(s, s.free)


def test_a_cached_model_outweighs_a_zygote_and_room() -> None:
    nodes = [
        candidate("a", slots=(("runtimes.vllm_pd", 1),)),
        candidate("b", Resources(1000, 512), models=("pvc://m",)),
        candidate("c"),
    ]
    chosen = choose(revision(), nodes)
    assert chosen is not None
    assert chosen.status.node == "b"


def test_a_zygote_outweighs_room_and_room_decides_last() -> None:
    nodes = [candidate("a", Resources(2000, 8192)), candidate("b"), candidate("c")]
    chosen = choose(revision(), nodes)
    assert chosen is not None
    assert chosen.status.node == "b"  # more room than a; same as c, lower id
    nodes[0] = candidate("a", Resources(2000, 8192), slots=(("runtimes.vllm_pd", 1),))
    chosen = choose(revision(), nodes)
    assert chosen is not None
    assert chosen.status.node == "a"


def test_near_its_gang_is_preferred() -> None:
    nodes = [candidate("a"), candidate("b", Resources(2000, 8192))]
    chosen = choose(revision(), nodes, near={NodeID("b")})
    assert chosen is not None
    assert chosen.status.node == "b"


def test_what_does_not_fit_drains_or_was_tried_is_never_chosen() -> None:
    nodes = [candidate("a", Resources(999, 8192)), candidate("b", accepting=False), candidate("c")]
    assert choose(revision(), nodes, tried={NodeID("c")}) is None


def test_why_not_names_the_closest_node_and_the_short_resource() -> None:
    assert "has no nodes" in why_not(revision(), [], "partition s")
    small = why_not(revision(cpu=64000), [candidate("a"), candidate("b")], "partition s")
    assert "large enough" in small
    assert "cpu: needs 64000m, 4000m in all" in small
    full = why_not(revision(), [candidate("a", Resources(0, 0)), candidate("b", Resources(900, 8000))], "p")
    assert "closest is b: cpu: needs 1000m, 900m free" in full
    assert "draining" in why_not(revision(), [candidate("a", accepting=False)], "p")


def test_a_late_status_never_replaces_a_newer_one() -> None:
    partition = Partition()
    assert partition.learn(status("a", Resources(100, 100), seq=5))
    assert not partition.learn(status("a", seq=4))
    assert partition.learn(status("a", Resources(7, 7), seq=1, incarnation=2))
    assert partition.candidates()[0].free == Resources(7, 7)


def test_starts_under_way_are_deducted_until_answered() -> None:
    partition = Partition()
    partition.learn(status("a"))
    partition.sent(InstanceID("i"), NodeID("a"), Resources(1000, 1000))
    assert partition.candidates()[0].free == Resources(3000, 7192)
    assert partition.room()[2] == 1
    partition.answered(InstanceID("i"))
    assert partition.candidates()[0].free == Resources(4000, 8192)
