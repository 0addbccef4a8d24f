"""Homes <-> Schedule functions: where instances go, and which resource is short where they don't fit."""

from __future__ import annotations

from kserve_ext.core.facts import Mark, Revision
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.wire.messages.base import Message
from kserve_ext.wire.messages.coordinate import Room


class Item(Message, frozen=True):
    """`ids` instances of one revision to place."""

    revision: Revision
    ids: tuple[InstanceID, ...]


class Schedule(Message, frozen=True):
    """Home -> Schedule function. `gang`: all of them or none."""

    items: tuple[Item, ...]
    epoch: int
    home: FunctionID
    home_addr: str
    waiting: tuple[str, ...] = ()
    gang: bool = False
    hops: int = 0  # partitions that passed it on; bounds the search
    marks: tuple[Mark, ...] = ()
    reserve: bool = False  # admit only: the asking Schedule function commits or cancels at the nodes
    near: tuple[NodeID, ...] = ()  # nodes of the instances that these exchange KV with
    waited_s: float = 0.0  # since the home was first refused for lack of room


class Placed(Message, frozen=True):
    instance: InstanceID
    node: NodeID
    addr: str  # the node agent's rpc address


class Refused(Message, frozen=True):
    """`unknown` names a node that was asked and whose answer was lost ("?": which one isn't known either):
    the instance may exist, and counts until its node has reported or is gone."""

    instance: InstanceID
    reason: str  # which resource is short where, for a person
    unknown: NodeID = NodeID("")
    never: bool = False  # no node of the cluster is large enough, even when empty


class Placements(Message, frozen=True):
    placed: tuple[Placed, ...]
    refused: tuple[Refused, ...] = ()
    stale: bool = False
    epoch: int = 0
    room: Room | None = None  # what is left where it was borrowed
