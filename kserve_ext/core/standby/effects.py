"""What the node agent's account (agent.py) has to say to slots, to activators, and to the autoscaler that asks."""

from __future__ import annotations

from typing import NamedTuple

from kserve_ext.core.ids import InstanceID, RevisionKey
from kserve_ext.core.standby.facts import Assignment, Slot


class StartSlot(NamedTuple):
    link: int
    assignment: Assignment


class EmptySlot(NamedTuple):
    """It drains, and is a standby again."""

    link: int
    revision: RevisionKey


class Drop(NamedTuple):
    """The connection ends, and the slot hears why."""

    link: int
    reason: str


class News(NamedTuple):
    """For activators: requests may go to this instance, or no longer."""

    to: tuple[str, ...]
    revision: RevisionKey
    instance: InstanceID
    addr: str  # host:port
    incarnation: int
    serves: bool
    reason: str = ""  # why no longer


Effect = StartSlot | EmptySlot | Drop | News


class Verdict(NamedTuple):
    reason: str = ""  # "" = done
    stale: bool = False
    slot: Slot | None = None
