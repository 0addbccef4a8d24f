"""What the node agent's machine is told and what it answers: orders, verdicts, limits and instructions.

The instructions are the whole of what the shell carries out; each names the event by which its outcome comes
back (methods of kserve_ext/core/node/machine.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kserve_ext.core.facts import Instance, Mark, Revision
from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey

FULL_PERIOD_S = 2.0
ORPHAN_S = 30.0
KILL_GRACE_S = 5.0  # after drain_s, before the process is killed; and between two kills


class Order(NamedTuple):
    """A start, as it was asked for."""

    instance: InstanceID
    revision: Revision
    epoch: int
    home: FunctionID
    home_addr: str
    waiting: tuple[str, ...] = ()
    reserve: bool = False
    reserve_s: float = 5.0
    marks: tuple[Mark, ...] = ()
    term: int = 0  # of the Schedule function that asks, 0 = not said


class Verdict(NamedTuple):
    """`reason` is "" when done."""

    reason: str = ""
    stale: bool = False
    moved: bool = False  # another Schedule function places here meanwhile


class Timing(NamedTuple):
    """The periods and limits; tests shorten them."""

    full_s: float = FULL_PERIOD_S
    orphan_s: float = ORPHAN_S
    kill_grace_s: float = KILL_GRACE_S


# --- instructions


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring the model of this instance near: then fetched, or fetch_failed."""

    instance: InstanceID


@dataclass(frozen=True, slots=True)
class Launch:
    """Start the process: then launched, or launch_failed; later observed and exited."""

    instance: InstanceID
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signal:
    """`kill`: the whole process group at once; else ask the process to drain.

    One whose launch is still under way is given up if that is possible (launch_failed); else launched says that
    it exists, and the signal comes again.
    """

    instance: InstanceID
    kill: bool
    kill_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Tell:
    """ModInstance. The answer of `home` comes back as acknowledged, a lost one as tell_failed."""

    revision: RevisionKey
    addr: str
    home: bool
    instances: tuple[Instance, ...]
    full: bool
    epoch: int


@dataclass(frozen=True, slots=True)
class StartZygote:
    module: str


@dataclass(frozen=True, slots=True)
class EndZygote:
    module: str


@dataclass(frozen=True, slots=True)
class Ended:
    """All of this instance is over: its process, if any, and its use of the model."""

    instance: InstanceID


@dataclass(frozen=True, slots=True)
class Report:
    """The node's status changed: Update to ClusterMgr at once."""


Instruction = Fetch | Launch | Signal | Tell | StartZygote | EndZygote | Ended | Report
