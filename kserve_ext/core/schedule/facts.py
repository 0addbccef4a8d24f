"""What a Schedule function's machine is asked and answers, and what it wants carried out.

The shell carries each instruction out and feeds its outcome back: of SendStart started() or start_lost(), of
SendCommit committed(), of Forward forwarded(), of SendProbe probed(); of TellRoom the line's leaves() if nobody wants
it any more, of AskRoom its yielded().
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from kserve_ext.core.facts import Revision
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey


class Wanted(NamedTuple):
    instance: InstanceID
    revision: Revision


class Place(NamedTuple):
    """Where an instance was admitted."""

    instance: InstanceID
    node: NodeID
    addr: str


class Refusal(NamedTuple):
    """Why an instance was not placed. `unknown`: this node was asked and its answer was lost."""

    instance: InstanceID
    reason: str
    unknown: NodeID = NodeID("")
    never: bool = False  # no node of the cluster is large enough, even when empty


class Standing(NamedTuple):
    """For whom a call asks, as far as the line is concerned."""

    home_addr: str = ""  # "": nobody could be told, so it does not wait
    waited_s: float = 0.0  # since its home was first refused


NOBODY = Standing()
#: Before the name of a booking, which is deducted of its node as a start under way is.
BOOKED: Final = "room/"


# --- instructions


class SendStart(NamedTuple):
    op: int
    instance: InstanceID
    revision: Revision
    node: NodeID
    addr: str
    reserve: bool


class SendCommit(NamedTuple):
    """To one node: start, or with `cancel` release, what it has reserved."""

    op: int
    addr: str
    instances: tuple[InstanceID, ...]
    cancel: bool
    reason: str = ""


class Forward(NamedTuple):
    """Ask another partition. `reserve`: it shall reserve only; we commit or cancel at its nodes."""

    op: int
    function: FunctionID
    wanted: tuple[Wanted, ...]
    reserve: bool
    hops: int


class SendProbe(NamedTuple):
    """Ask a node for its status; `op` 0: nobody waits for the answer."""

    op: int
    node: NodeID
    addr: str


class Answer(NamedTuple):
    op: int
    placed: tuple[Place, ...]
    refused: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class TellRoom:
    """To a home: there is room for these revisions now; declined() if it doesn't want it any more."""

    key: str
    home_addr: str
    revisions: tuple[RevisionKey, ...]


@dataclass(frozen=True, slots=True)
class AskRoom:
    """To the home of `victim`: let `count` of its instances on `node` go; yielded() says how many do."""

    victim: RevisionKey
    home_key: str
    node: NodeID
    count: int
    priority: int
    reason: str


#: of a Schedule call; TellRoom and AskRoom come from the tick
Instruction = SendStart | SendCommit | Forward | SendProbe | Answer
