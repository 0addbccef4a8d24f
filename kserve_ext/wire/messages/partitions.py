"""Between Schedule functions: nodes that change hands (core/schedule/handover.py)."""

from __future__ import annotations

from typing import NamedTuple

from kserve_ext.core.facts import NodeStatus, Resources
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.wire.messages.base import Message


class ClaimNodes(Message, frozen=True):
    """New owner -> whoever may have them: a view of this epoch has given these nodes to the sender."""

    epoch: int
    nodes: tuple[NodeID, ...]


class HandedNode(NamedTuple):
    """A node that the answering function places on no more, and the starts that it has under way there."""

    node: NodeID
    status: NodeStatus | None
    starts: tuple[tuple[InstanceID, Resources], ...] = ()


class MovedNode(NamedTuple):
    """A node that isn't there. `to`: who may have it, "" = not known; `owner`: so says a newer view."""

    node: NodeID
    to: FunctionID = FunctionID("")
    owner: bool = False


class HandNodes(Message, frozen=True):
    epoch: int
    handed: tuple[HandedNode, ...] = ()
    moved: tuple[MovedNode, ...] = ()
