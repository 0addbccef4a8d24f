"""One Schedule call under way: what is wanted, what has become of each of it, and what is still to be heard.

It is over when nothing is open and every instance is placed or refused (machine.py).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from kserve_ext.core.facts import Revision
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.core.schedule.facts import NOBODY, Place, Refusal, Standing
from kserve_ext.core.schedule.line import key_of


@dataclass(slots=True)
class Op:
    """One Schedule call under way."""

    wanted: dict[InstanceID, Revision]
    gang: bool
    reserve: bool
    hops: int
    #: where partners of these instances are
    near: Collection[NodeID] = ()
    who: Standing = NOBODY
    #: nodes that refused, by instance
    tried: dict[InstanceID, set[NodeID]] = field(default_factory=dict)
    placed: dict[InstanceID, Place] = field(default_factory=dict)
    #: no node here takes it: may still find room elsewhere
    stuck: dict[InstanceID, Refusal] = field(default_factory=dict)
    #: final
    refused: dict[InstanceID, Refusal] = field(default_factory=dict)
    #: starts, commits and forwards not yet answered
    open: int = 0
    #: partitions asked
    asked: set[FunctionID] = field(default_factory=set)
    committing: bool = False
    #: of a gang: where each fits together with the others
    plan: dict[InstanceID, NodeID] = field(default_factory=dict)
    #: not all nodes are told of: it decides by the probe cache (`elsewhere`: after the other partitions), and has
    #: asked these nodes; nothing is placed before they have answered
    pooled: bool = False
    elsewhere: bool = False
    probed: set[NodeID] = field(default_factory=set)
    probing: int = 0
    #: of `wanted`, those that an earlier call has asked for
    repeated: set[InstanceID] = field(default_factory=set)

    @property
    def members(self) -> dict[str, list[InstanceID]]:
        """By who stands in line for them."""
        found: dict[str, list[InstanceID]] = {}
        for instance, revision in self.wanted.items():
            found.setdefault(key_of(revision, self.gang or self.reserve), []).append(instance)
        return found
