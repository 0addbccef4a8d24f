"""What shards and homes say to each other about slots, from messages to the facts that the cores know."""

from __future__ import annotations

import msgspec

from kserve_ext.core.dispatch import facts
from kserve_ext.wire.messages import Demand, Grant


def demand_facts(demand: Demand) -> facts.Demand:
    """The same fields in the same order."""
    return facts.Demand(*msgspec.structs.astuple(demand))


def grant_facts(grant: Grant) -> facts.Grant:
    return facts.Grant(*msgspec.structs.astuple(grant))
