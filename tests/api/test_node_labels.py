"""Labels of nodes as `galaxy up --node-labels` and the node agent read them."""

from __future__ import annotations

import pytest

from kserve_ext.api.node_labels import by_node, read_labels


def test_labels_are_read_in_order_of_key() -> None:
    assert read_labels("zone=b,kserve-galaxy.io/rail=1,empty=") == (
        ("empty", ""),
        ("kserve-galaxy.io/rail", "1"),
        ("zone", "b"),
    )
    assert read_labels("") == ()


@pytest.mark.parametrize(
    "text", ["zone", "=a", "zone=a b", "Zone/x/y=1", "zone=-a", "zone=a,zone=b", "kubernetes.io/hostname=a"]
)
def test_what_is_no_label_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ValueError, match=r"zone|=a|Zone|hostname"):
        read_labels(text)


def test_labels_of_one_node_come_on_top_of_those_of_all() -> None:
    found = by_node(["zone=a,rail=1", "node-1:zone=b"], ["node-0", "node-1"])
    assert found == {"node-0": {"zone": "a", "rail": "1"}, "node-1": {"zone": "b", "rail": "1"}}
    assert by_node([], ["node-0"]) == {}
    with pytest.raises(ValueError, match="there is no node node-7; they are node-0"):
        by_node(["node-7:zone=a"], ["node-0"])
