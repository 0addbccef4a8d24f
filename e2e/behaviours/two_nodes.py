"""A second node for tests of standby pods: the parts of the system are all on the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from e2e.behaviours.standby import installing
from e2e.stack.api import Api, Object
from e2e.stack.cluster import Cluster, another_node

SECOND = "node-2"
#: Nothing new comes to a node with it, and nobody has cordoned that.
ELSEWHERE = [{"key": "test", "value": "elsewhere", "effect": "NoSchedule"}]


@contextmanager
def on_the_first(stack: Cluster) -> Iterator[Api]:
    """Ours, installed while only the first takes pods; from then on both do."""
    with another_node(stack, SECOND):
        stack.api.patch("v1", "Node", "", SECOND, {"spec": {"unschedulable": True}})
        with installing(stack, nodes=2) as api:
            api.patch("v1", "Node", "", SECOND, {"spec": {"unschedulable": None}})
            yield api
            api.patch("v1", "Node", "", SECOND, {"spec": {"unschedulable": True}})


def node_of(pod: Object) -> str:
    return str(pod["spec"].get("nodeName", ""))


@contextmanager
def marked(api: Api, node: str, **spec: object) -> Iterator[None]:
    """Its spec, and as it was in the end."""
    api.patch("v1", "Node", "", node, {"spec": spec})
    try:
        yield
    finally:
        api.patch("v1", "Node", "", node, {"spec": dict.fromkeys(spec)})
