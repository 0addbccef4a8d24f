"""The nouns of standby pods: a slot as its node agent tells of it, and what it must know to serve a revision."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from kserve_ext.core.ids import InstanceID, RevisionKey

#: S0: the runtime is imported, any of its models; S1: an engine of this shape that only lacks weights; S2: an engine
#: that sleeps with its weights in host memory.
Level = Literal["S0", "S1", "S2"]

#: warming: not to be had yet. starting: it has a revision, which does not serve yet. failed: it could not start the
#: revision, and is to be deleted. draining: it takes nothing new, and is warming again or gone after that.
SlotState = Literal["warming", "ready", "starting", "serving", "draining", "failed"]


#: A step: sleepers were ended, since the GPU had no room beside them.
SLEEPERS_ENDED: Final = "sleepers_ended"


class Started(NamedTuple):
    """How a slot has come to serve its revision."""

    level: Level  # that the start was made from
    why: str = ""  # it is not the slot's own: what the engine there lacks, or that there was none
    steps: tuple[tuple[str, int], ...] = ()  # what was done, in milliseconds after the slot was told


class Slot(NamedTuple):
    """One standby pod, adopted or not, as long as its process lives."""

    pod: str  # namespace/name
    uid: str
    pool: str  # the digest in its label; slots of one pool are alike
    addr: str  # IP of the pod
    level: Level
    state: SlotState
    revision: RevisionKey = RevisionKey("")  # that it starts, serves or drains
    reason: str = ""  # of failed or warming: what, and what to do
    since: float = 0.0  # of this state, unix seconds
    incarnation: int = 0  # of its process: unix nanoseconds at its start
    gpus: int = 0  # that its pod has
    started: Started | None = None  # of serving
    asleep: tuple[str, ...] = ()  # S2: engines that can be woken, as the annotation names them


class Timeouts(NamedTuple):
    """Of requests in seconds, 0 = none; Knative's words."""

    total_s: float = 300.0
    start_s: float = 0.0
    idle_s: float = 0.0


class Assignment(NamedTuple):
    """All that a slot needs to become a pod of a revision: its server, and what queue-proxy would have been told.

    argv and env are as in the pod's spec, values from elsewhere looked up: `$(NAME)` is put in by the slot.
    """

    revision: RevisionKey
    instance: InstanceID  # the pod's name
    argv: tuple[str, ...]  # command and args of the user's container
    env: tuple[tuple[str, str], ...]
    port: int  # on which the server listens
    http2: bool  # h2c: requests come to 8013, else to 8012
    concurrency: int  # 0 = no limit
    timeouts: Timeouts
    probe: str  # readinessProbe of the user's container as JSON; "" = its port accepts
    labels: tuple[tuple[str, str], ...]  # service, configuration, ...: for metrics and logs
    model: tuple[tuple[str, str], ...] = ()  # path that argv and env use -> where the pod has it mounted
    drain_s: float = 300.0  # longest wait for requests under way (timeoutSeconds)
    engine: str = ""  # the one that serves it where it sleeps (S2), as the annotation names it
