"""What the slot of a standby pod and its front say to each other: a JSON object a line, both ways.

On a pair of sockets that the front inherits, so that nobody else can say any of it. The end of the slot's side is the
front's end, too.
"""

from __future__ import annotations

import msgspec

from kserve_ext.core.standby.facts import Assignment


class Blank(msgspec.Struct, tag="blank", frozen=True):
    """Slot -> front: there is no revision. The pod is ready, or why it isn't."""

    ready: bool
    reason: str = ""


class Assign(msgspec.Struct, tag="assign", frozen=True):
    """Slot -> front: requests are this revision's. Its answer is Assigned."""

    assignment: Assignment


class Serve(msgspec.Struct, tag="serve", frozen=True):
    """Slot -> front: the server has begun to answer; from here on its probe says whether the pod is ready."""

    revision: str


class Drain(msgspec.Struct, tag="drain", frozen=True):
    """Slot -> front: finish what is under way, within `seconds`. Its answer is Drained.

    What is new is served until nothing has come for `quiet_s`, which may have been waited for already at the request
    of a preStop hook, and refused then.
    """

    revision: str
    seconds: float
    quiet_s: float = 0.0
    ends: bool = False  # the pod does; else it is another revision's next


class Up(msgspec.Struct, tag="up", frozen=True):
    """Front -> slot: it listens."""


class Assigned(msgspec.Struct, tag="assigned", frozen=True):
    revision: str


class Drained(msgspec.Struct, tag="drained", frozen=True):
    revision: str
    cut: int = 0  # exchanges that were not done in time


ToFront = Blank | Assign | Serve | Drain
ToSlot = Up | Assigned | Drained
