"""Filter, score and the reasons of placement; and the partition's account of starts under way."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from kserve_ext.core.facts import Command, Model, NodeStatus, Resources, Revision, Scale
from kserve_ext.core.ids import InstanceID, NodeID, RevisionKey
from kserve_ext.core.schedule.filters import Candidate, fits, why_not
from kserve_ext.core.schedule.partition import Partition
from kserve_ext.core.schedule.scores import NOWHERE, RAIL_LABEL, ZONE_LABEL, Near, near, score


def choose(
    revision: Revision,
    candidates: Iterable[Candidate],
    *,
    tried: Collection[NodeID] = (),
    partners: Near = NOWHERE,
) -> Candidate | None:
    """The definition of the best node, by looking at each."""
    fitting = [c for c in candidates if c.status.node not in tried and fits(revision, c)]
    return min(fitting, key=lambda c: (-score(revision, c, partners), c.status.node), default=None)


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
    chosen = choose(revision(), nodes, partners=near({NodeID("b")}, ()))
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


def gpus(name: str, free: int, of: int, **labels: str) -> Candidate:
    named = tuple(sorted((key.replace("_", "/"), value) for key, value in labels.items()))
    return Candidate(
        status(name, capacity=Resources(64000, 8192, of))._replace(labels=named),
        Resources(64000, 8192, free),
    )


def needing(count: int) -> Revision:
    wanted = revision()
    return wanted._replace(needs=wanted.needs._replace(gpus=count))


def test_a_gpu_node_that_is_partly_used_is_filled_before_an_empty_one_is_opened() -> None:
    nodes = [gpus("a", 4, 4), gpus("b", 6, 8), gpus("c", 3, 8), gpus("d", 8, 8)]
    chosen = choose(needing(2), nodes)
    assert chosen is not None
    assert chosen.status.node == "c", "the fullest that takes it"
    four = choose(needing(4), [*nodes, gpus("e", 4, 8)])
    assert four is not None
    assert four.status.node == "e"
    spread = choose(needing(2)._replace(placement="spread"), nodes)
    assert spread is not None
    assert spread.status.node == "d", "the largest share stays free there"


def test_what_needs_no_gpu_stays_off_gpu_nodes_as_long_as_others_take_it() -> None:
    nodes = [gpus("a", 8, 8), candidate("b", Resources(1500, 1024))]
    chosen = choose(revision(), nodes)
    assert chosen is not None
    assert chosen.status.node == "b"
    assert choose(revision(), nodes, tried={NodeID("b")}) is nodes[0]


def test_partners_are_sought_on_the_host_then_the_rail_then_the_zone() -> None:
    def at(name: str, rail: str, zone: str) -> Candidate:
        labels = ((RAIL_LABEL, rail), (ZONE_LABEL, zone))
        return Candidate(status(name)._replace(labels=labels), Resources(4000, 8192))

    nodes = [at("a", "r9", "z9"), at("b", "r9", "z1"), at("c", "r1", "z1"), at("d", "r1", "z1")]
    partners = near({NodeID("d")}, [nodes[3].status])
    order: list[NodeID] = []
    for _ in nodes:
        chosen = choose(revision(), nodes, tried=order, partners=partners)
        assert chosen is not None
        order.append(chosen.status.node)
    assert order == ["d", "c", "b", "a"]


def test_only_nodes_with_the_selected_labels_are_considered_and_a_refusal_says_so() -> None:
    picky = revision()._replace(node_selector=(("disk", "nvme"),))
    nodes = [
        candidate("a"),
        Candidate(status("b")._replace(labels=(("disk", "nvme"),)), Resources(1000, 512)),
    ]
    chosen = choose(picky, nodes)
    assert chosen is not None
    assert chosen.status.node == "b"
    assert "has the labels that default/m-00001 selects: disk=nvme" in why_not(picky, nodes[:1], "p")
