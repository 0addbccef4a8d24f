"""What a standby pod and the agent of its node say over the agent's unix socket: a JSON object a line, both ways.

The pod dials; its connection is its life. It begins with Hello and tells its state whenever that changes; the agent
sends orders. A slot that is connected again tells what it does, so neither side has to remember the other. What runs
in the pod is a user's: numbers and names have bounds, since the agent passes them on to every autoscaler.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from kserve_ext.core.standby.facts import Assignment, Level, SlotState, Started

#: Of names in Kubernetes: 253 characters, and a namespace before it.
_Name = Annotated[str, msgspec.Meta(max_length=320)]
_Short = Annotated[str, msgspec.Meta(max_length=64)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """Who dials. The API server checks `token` for the agent (TokenReview, audience kserve-galaxy.io)."""

    token: str
    pod: _Name  # namespace/name
    uid: _Short
    pool: _Short
    addr: _Short  # IP of the pod
    level: Level
    incarnation: _Number
    gpus: Annotated[int, msgspec.Meta(ge=0, le=1024)] = (
        0  # that the pod has, for the account of what stands by
    )


class State(msgspec.Struct, tag="state", frozen=True):
    state: SlotState
    revision: _Name = ""
    reason: str = ""
    started: Started | None = None  # of serving
    asleep: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=64)] = ()  # S2: engines that can be woken


class Start(msgspec.Struct, tag="start", frozen=True):
    """Agent -> slot. Its answer is a State: starting or, if it has another revision, its state with the reason."""

    assignment: Assignment


class Free(msgspec.Struct, tag="free", frozen=True):
    """Agent -> slot: drain, end the server, be a standby again."""

    revision: str


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """Agent -> slot, and the end of the connection: why, and what to do."""

    reason: str


FromSlot = Hello | State
FromAgent = Start | Free | Refused
