"""What happens to the slot of a standby pod, and what it has to be done: events and instructions of slot.py.

Those about engines that sleep (level S2) are engines.py's.
"""

from __future__ import annotations

from typing import NamedTuple

from kserve_ext.core.standby.engine_events import EngineEvent, EngineOrder
from kserve_ext.core.standby.facts import Assignment, SlotState, Started

# --- what happened


class BaseReady(NamedTuple):
    """A server can be forked at once."""

    note: str = ""  # why from no better level than S0


class BaseDied(NamedTuple):
    reason: str
    hopeless: bool = False  # another would end likewise


class FrontUp(NamedTuple):
    """It listens, and knows nothing."""


class FrontAssigned(NamedTuple):
    """It has the revision, and sends its requests to the server."""

    revision: str


class FrontDrained(NamedTuple):
    """Nothing is under way any more."""

    revision: str


class FrontDied(NamedTuple):
    reason: str


class Connected(NamedTuple):
    """To the agent."""


class StartAsked(NamedTuple):
    assignment: Assignment


class FreeAsked(NamedTuple):
    revision: str


class ServerReady(NamedTuple):
    started: Started | None = None


class ServerFailed(NamedTuple):
    """It was not started, or says itself that it can't serve."""

    reason: str


class ServerEnded(NamedTuple):
    reason: str  # how
    permanent: bool = False  # the next would end like this one


class Cleaned(NamedTuple):
    """Nothing of its last revision is left in the pod."""


class NotCleaned(NamedTuple):
    """Something is, or may be."""

    reason: str


class Outdated(NamedTuple):
    """What the pod was made with has changed, and it has it as it was."""

    reason: str


class Terminated(NamedTuple):
    """The pod is deleted."""


Event = (
    BaseReady
    | BaseDied
    | FrontUp
    | FrontAssigned
    | FrontDrained
    | FrontDied
    | Connected
    | StartAsked
    | FreeAsked
    | ServerReady
    | ServerFailed
    | ServerEnded
    | Cleaned
    | NotCleaned
    | EngineEvent
    | Outdated
    | Terminated
)


# --- what to do


class StartBase(NamedTuple):
    """Later, if it has died before: `failures` in a row."""

    failures: int


class CheckBase(NamedTuple):
    """Ask it whether the next fork can be had at once: BaseReady when it can."""


class StartFront(NamedTuple):
    failures: int


class Tell(NamedTuple):
    """The agent, if it is connected: else it hears the state when it is."""

    state: SlotState
    revision: str
    reason: str
    started: Started | None = None
    asleep: tuple[str, ...] = ()


class Fork(NamedTuple):
    """The revision's server."""

    assignment: Assignment


class EndServer(NamedTuple):
    """SIGTERM, after `grace_s` SIGKILL; ServerEnded follows."""

    grace_s: float


class Clean(NamedTuple):
    """Away with what the revision has left in the pod's files: Cleaned or NotCleaned follows."""


class FrontBlank(NamedTuple):
    """The front has no revision; whether the pod is ready, and why not."""

    ready: bool
    reason: str


class FrontAssign(NamedTuple):
    assignment: Assignment
    engine: str = ""  # whose port its requests go to; "" = the server's own


class FrontServe(NamedTuple):
    """The server answers: probes are asked on."""

    revision: str


class FrontDrain(NamedTuple):
    """FrontDrained follows, after `seconds` at the latest. Requests are taken until none has come for `quiet_s`."""

    revision: str
    seconds: float
    quiet_s: float
    ends: bool  # the pod does; else it is another's next


class End(NamedTuple):
    """Everything, and then the process with this code."""

    code: int
    reason: str


Instruction = (
    StartBase
    | CheckBase
    | StartFront
    | Tell
    | Fork
    | EndServer
    | Clean
    | FrontBlank
    | FrontAssign
    | FrontServe
    | FrontDrain
    | EngineOrder
    | End
)
