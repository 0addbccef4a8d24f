"""The kept order of nodes is that of looking at all of them, whatever has changed in between."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.facts import NodeStatus, Placement, Resources, Revision
from kserve_ext.core.ids import InstanceID, NodeID
from kserve_ext.core.schedule.partition import Partition
from kserve_ext.core.schedule.scores import NOWHERE, ZONE_LABEL, Near
from tests.core.schedule.test_placement import choose, revision

MODULE = "runtimes.vllm_pd"
ZONES = ((), ((ZONE_LABEL, "a"),), ((ZONE_LABEL, "b"),))
PARTNERS = (NOWHERE, Near(frozenset({NodeID("n1")}), frozenset(), frozenset({"a"})))


@st.composite
def shapes(draw: st.DrawFn) -> Revision:
    placement: Placement = draw(st.sampled_from(("auto", "pack", "spread")))
    base = revision(draw(st.integers(0, 3)) * 500, uri=draw(st.sampled_from(("", "pvc://m", "pvc://n"))))
    needs = base.needs._replace(gpus=draw(st.integers(0, 2)))
    return base._replace(needs=needs, placement=placement, node_selector=draw(st.sampled_from(ZONES)))


@st.composite
def statuses(draw: st.DrawFn, seq: int) -> NodeStatus:
    name = f"n{draw(st.integers(0, 5))}"
    gpus = draw(st.sampled_from((0, 0, 4)))
    capacity = Resources(4000, 8192, gpus)
    free = Resources(draw(st.integers(0, 8)) * 500, 8192, draw(st.integers(0, gpus)))
    models = tuple(m for m in ("pvc://m", "pvc://n") if draw(st.booleans()))
    slots = ((MODULE, 1),) if draw(st.booleans()) else ()
    return NodeStatus(
        NodeID(name),
        f"{name}:1",
        1,
        seq,
        capacity,
        free,
        slots,
        models,
        accepting=draw(st.integers(0, 5)) > 0,
        labels=draw(st.sampled_from(ZONES)),
    )


@settings(max_examples=80, deadline=None)
@given(data=st.data(), kinds=st.lists(shapes(), min_size=1, max_size=4))
def test_the_kept_order_is_that_of_looking_at_every_node(data: st.DataObject, kinds: list[Revision]) -> None:
    partition = Partition()
    sent: list[InstanceID] = []
    for step in range(data.draw(st.integers(1, 25))):
        what = data.draw(st.sampled_from(("learn", "learn", "forget", "sent", "answered", "keep")))
        if what == "learn":
            partition.learn(data.draw(statuses(step)))
        elif what == "forget":
            partition.forget(NodeID("n0"))
        elif what == "keep":
            partition.keep_only({NodeID(f"n{k}") for k in range(data.draw(st.integers(3, 6)))})
        elif what == "answered" and sent:
            partition.answered(sent.pop())
        elif what == "sent" and partition.candidates():
            node = data.draw(st.sampled_from(partition.candidates())).status.node
            sent.append(InstanceID(f"i{step}"))
            partition.sent(sent[-1], node, Resources(500, 64))
        asked = data.draw(st.sampled_from(kinds))
        tried = data.draw(st.sets(st.sampled_from([NodeID(f"n{k}") for k in range(6)]), max_size=3))
        partners = data.draw(st.sampled_from(PARTNERS))
        expected = choose(asked, partition.candidates(), tried=tried, partners=partners)
        assert partition.ranking.best(asked, tried, partners) == expected
        assert [c.status.node for c in partition.candidates()] == sorted(
            c.status.node for c in partition.candidates()
        )


def test_the_model_of_whoever_asked_first_counts_for_nobody_else() -> None:
    partition = Partition()
    for seq, name in enumerate(("n0", "n1")):
        size = Resources(4000, 8192)
        partition.learn(NodeStatus(NodeID(name), f"{name}:1", 1, seq, size, size))
    assert partition.ranking.best(revision(500, uri="pvc://m")) is not None
    size = Resources(4000, 8192)
    partition.learn(NodeStatus(NodeID("n1"), "n1:1", 1, 9, size, Resources(1000, 8192), models=("pvc://m",)))
    for uri in ("", "pvc://n"):
        best = partition.ranking.best(revision(500, uri=uri))
        assert best is not None
        assert best.status.node == "n0", "it has more room, and the model is of no use to this one"
