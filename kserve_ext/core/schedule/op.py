"""One Schedule call under way: what is wanted, what has become of each of it, and what is still to be heard.

It is over when nothing is open and every instance is placed or refused (machine.py).
"""

from __future__ import annotations

from collections.abc import Collection

from kserve_ext.core.facts import Revision
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.core.schedule.facts import NOBODY, Place, Refusal, Standing
from kserve_ext.core.schedule.line import key_of


class Op:
    """One Schedule call under way."""

    __slots__ = (
        "asked",
        "committing",
        "elsewhere",
        "gang",
        "hops",
        "near",
        "open",
        "outdated",
        "placed",
        "plan",
        "pooled",
        "probed",
        "probing",
        "refused",
        "repeated",
        "reserve",
        "stuck",
        "tried",
        "wanted",
        "who",
    )

    def __init__(
        self,
        wanted: dict[InstanceID, Revision],
        gang: bool,
        reserve: bool,
        hops: int,
        near: Collection[NodeID] = (),
        who: Standing = NOBODY,
    ) -> None:
        """`near`: where partners of these instances are."""
        self.wanted = wanted
        self.gang, self.reserve, self.hops = gang, reserve, hops
        self.near, self.who = near, who
        #: nodes that refused, by instance
        self.tried: dict[InstanceID, set[NodeID]] = {}
        self.placed: dict[InstanceID, Place] = {}
        #: no node here takes it: may still find room elsewhere
        self.stuck: dict[InstanceID, Refusal] = {}
        #: final
        self.refused: dict[InstanceID, Refusal] = {}
        #: nodes obey a newer home of these
        self.outdated: set[InstanceID] = set()
        #: starts, commits and forwards not yet answered
        self.open = 0
        #: partitions asked
        self.asked: set[FunctionID] = set()
        self.committing = False
        #: of a gang: where each fits together with the others
        self.plan: dict[InstanceID, NodeID] = {}
        #: not all nodes are told of: it decides by the probe cache (`elsewhere`: after the other partitions), and has
        #: asked these nodes; nothing is placed before they have answered
        self.pooled = self.elsewhere = False
        self.probed: set[NodeID] = set()
        self.probing = 0
        #: of `wanted`, those that an earlier call has asked for
        self.repeated: set[InstanceID] = set()

    @property
    def members(self) -> dict[str, list[InstanceID]]:
        """By who stands in line for them."""
        found: dict[str, list[InstanceID]] = {}
        for instance, revision in self.wanted.items():
            found.setdefault(key_of(revision, self.gang or self.reserve), []).append(instance)
        return found
