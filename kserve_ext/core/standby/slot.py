"""What the slot in a standby pod does next: its states, from the first process to the last.

Around it are three others: the base (a runtime's zygote, or an engine that only lacks weights) from which servers
are forked, the front (queue-proxy's duties), and the agent of the node, which gives and takes revisions. One event
in, instructions out, in order. It keeps at most one revision at a time; what it is asked and can't do, it answers
with its state and the reason. A server that ends while it serves ends the slot: the pod is then replaced, as
decision 33 says. So does one whose files can't be deleted: the next revision would see them. In a pod of level S2
engines sleep besides (engines.py): one of them is woken in place of a fork, if it is the revision's, and sleeps again
when the revision is given back. Where the GPU has no room for it sleepers are ended first; where it would have none
even so the revision is failed with the numbers, and is started elsewhere.
"""

from __future__ import annotations

from typing import Final

from kserve_ext.core.standby.engine_events import (
    EndEngine,
    EngineEvent,
    EngineGone,
    EngineLoaded,
    EngineMissed,
    EngineSlept,
    EngineWoke,
)
from kserve_ext.core.standby.engines import Answer, PodEngines
from kserve_ext.core.standby.facts import SLEEPERS_ENDED, Assignment, SlotState, Started
from kserve_ext.core.standby.room import share_of
from kserve_ext.core.standby.slot_events import (
    BaseDied,
    BaseReady,
    CheckBase,
    Clean,
    Cleaned,
    Connected,
    End,
    EndServer,
    Event,
    Fork,
    FreeAsked,
    FrontAssign,
    FrontAssigned,
    FrontBlank,
    FrontDied,
    FrontDrain,
    FrontDrained,
    FrontServe,
    FrontUp,
    Instruction,
    NotCleaned,
    Outdated,
    ServerEnded,
    ServerFailed,
    ServerReady,
    StartAsked,
    StartBase,
    StartFront,
    Tell,
    Terminated,
)

#: Ports of the front, which a revision's server can't have.
FRONT_PORTS: Final = (8012, 8013, 8022, 9090, 9091)
#: Between the front's last answer and the kill of a server that does not end by itself.
SERVER_GRACE_S: Final = 10.0
#: A pod that is deleted serves on until nobody has come for so long, as with queue-proxy: load balancers learn late.
QUIET_S: Final = 30.0
#: Likewise one that gives its revision back: that is told to activators, but some learn by their Endpoints only, and
#: what they have sent meanwhile would be refused.
FREED_QUIET_S: Final = 2.0
#: A base that has never been ready after so many starts won't be: the pod is replaced, more slowly each time.
MOST_BASE_FAILURES: Final = 6
#: Ends the reason of a slot that can't be taken because something in its pod has ended.
AGAIN: Final = "it is started again; the pod's log says more"


class SlotMachine:
    __slots__ = (
        "_assigned",
        "_base_failures",
        "_base_note",
        "_base_ready",
        "_cleaning",
        "_ending",
        "_fallback",
        "_front_failures",
        "_front_up",
        "_making_room",
        "_outdated",
        "_quiet_s",
        "_server",
        "_server_ready",
        "_started",
        "_woken",
        "assignment",
        "ended",
        "engines",
        "pod",
        "reason",
        "state",
    )

    def __init__(self, pod: str, quiet_s: float = QUIET_S, engines: PodEngines | None = None) -> None:
        """`pod`: its name; `quiet_s`: so long nobody may have come before a pod that is deleted ends; `engines`: of a
        pod of level S2."""
        self.pod = pod
        self.engines = engines
        self._quiet_s = quiet_s
        self.state: SlotState = "warming"
        self.reason = "it has just begun"
        #: In starting, serving and draining; in failed, the one that could not start.
        self.assignment: Assignment | None = None
        #: End was said, and nothing follows.
        self.ended = False
        self._ending = False  # the pod is deleted
        self._outdated = ""  # why it is no revision's any more after the one that it has
        self._base_ready = False
        self._base_note = ""
        self._base_failures = 0
        self._front_up = False
        self._front_failures = 0
        self._assigned = False  # the front has the revision
        self._server = False  # it was asked for, and has not ended
        self._server_ready = False
        self._started: Started | None = None
        self._cleaning = False  # the server has ended, and its files are being deleted
        self._woken = ""  # the engine that is the server, from the order to wake until it sleeps, or is gone
        self._fallback = ""  # why its engine isn't the server
        self._making_room = False  # sleepers end; then its engine is woken, or the server forked

    @property
    def revision(self) -> str:
        return self.assignment.revision if self.assignment is not None else ""

    def begin(self) -> list[Instruction]:
        return [StartBase(0), StartFront(0)]

    def handle(self, event: Event) -> list[Instruction]:
        if self.ended:
            return []
        match event:
            case BaseReady(note):
                self._base_ready, self._base_note = True, note
                self._base_failures = 0
                return self._settle()
            case BaseDied(reason, hopeless):
                return self._base_died(reason, hopeless)
            case FrontUp():
                return self._front_began()
            case FrontAssigned(revision):
                if revision != self.revision:
                    return []
                self._assigned = True
                return self._serves()
            case FrontDrained(revision):
                return self._drained() if revision == self.revision else []
            case FrontDied(reason):
                return self._front_died(reason)
            case Connected():
                return [self._tell()]
            case StartAsked(assignment):
                return self._start(assignment)
            case FreeAsked(revision):
                return self._free(revision)
            case ServerReady(started):
                if started is not None:
                    started = started._replace(
                        why=self._fallback or started.why, steps=self._steps(started.steps)
                    )
                self._started = started
                return self._server_began()
            case ServerFailed(reason):
                return self._failed(reason)
            case ServerEnded(reason, _):
                self._server = False
                return self._server_ended(reason)
            case Cleaned():
                return self._cleaned()
            case NotCleaned(reason):
                return self._not_cleaned(reason)
            case EngineLoaded() | EngineSlept() | EngineWoke() | EngineMissed() | EngineGone():
                return self._engine(event)
            case Outdated(reason):
                self._outdated = reason
                return self._end(0, reason) if self.assignment is None else []
            case Terminated():
                return self._terminated()

    # --- orders

    def _start(self, assignment: Assignment) -> list[Instruction]:
        if self.assignment is not None and assignment.revision == self.revision:
            return [self._tell()]  # it was asked before, and the answer was lost
        why = self._refusal(assignment)
        if why:
            return [self._tell(why)]
        self.assignment = assignment
        self._assigned = self._server_ready = False
        self._started, self._fallback = None, ""
        if self.engines is not None:
            self.engines.asked(assignment.engine)
        return self._begin(assignment)

    def _begin(self, assignment: Assignment) -> list[Instruction]:
        if self.engines is not None and assignment.engine and not self._fallback:
            return self._wake(assignment, self.engines)
        return self._fork(assignment)

    def _wake(self, assignment: Assignment, engines: PodEngines) -> list[Instruction]:
        name = assignment.engine
        if name in engines.asleep:
            waits = self._make_room(engines.room_to_wake(name))
            if waits:
                return waits
        wake, why = engines.wake(name)
        if why:
            self._fallback = f"its engine was not woken: {why}"
            return self._fork(assignment)
        self._woken = name
        self._become("starting", "")
        return [self._tell(), *wake, FrontAssign(assignment, name)]

    def _make_room(self, answer: Answer) -> list[Instruction]:
        """[]: there is some."""
        self._making_room = bool(answer.orders)
        if answer.why:
            self._become("starting", self._fallback)
            return [self._tell(), *self._failed(answer.why)]
        if answer.orders:
            self._become("starting", self._fallback or "sleepers make room for it")
            return [self._tell(), *answer.orders]
        return []

    def _fork(self, assignment: Assignment) -> list[Instruction]:
        if self.engines is not None:
            name = assignment.engine or assignment.revision
            waits = self._make_room(self.engines.room_to_fork(name, share_of(assignment.argv)))
            if waits:
                return waits
        self._server = True
        self._base_ready = False
        self._become("starting", self._fallback)
        return [self._tell(), Fork(assignment), FrontAssign(assignment)]

    def _refusal(self, assignment: Assignment) -> str:
        """Why this can't be started here, "" if it can."""
        asked = f"can't start {assignment.revision}"
        if self._ending:
            return f"{asked}: the pod is being deleted; take another slot"
        if self.state != "ready":
            has = f"it has {self.revision}" if self.revision else self.reason
            return f"{asked}: this slot is {self.state} ({has}); take another slot"
        if assignment.instance.rpartition("/")[2] != self.pod:
            return f"{asked}: instance is {assignment.instance!r} and this pod {self.pod!r}; name this pod"
        if not assignment.argv:
            return f"{asked}: argv is empty; give the command and args of the user's container"
        if not 0 < assignment.port < 65536 or assignment.port in FRONT_PORTS:
            taken = ", ".join(map(str, FRONT_PORTS))
            return (
                f"{asked}: port {assignment.port} is none that a server can have; not 0 and none of {taken}"
            )
        return ""

    def _free(self, revision: str) -> list[Instruction]:
        if self.assignment is None or revision != self.revision:
            has = f"it has {self.revision}" if self.assignment is not None else "it has none"
            return [self._tell(f"can't free {revision}: {has}")]
        if self.state == "serving":
            assignment = self.assignment
            self._become("draining", "")
            return [self._tell(), *self._drain(assignment.drain_s, min(self._quiet_s, FREED_QUIET_S), False)]
        if self.state in ("starting", "failed"):
            self._become("draining", "")
            return [self._tell(), *self._end_server()]
        return [self._tell()]

    def _terminated(self) -> list[Instruction]:
        if self._ending:
            return []
        self._ending = True
        if self.assignment is None or self.state == "failed":
            return self._end(0, "the pod is deleted")
        if self.state == "serving":
            assignment = self.assignment
            self._become("draining", "the pod is deleted")
            return [self._tell(), *self._drain(assignment.drain_s, self._quiet_s, True)]
        if self.state == "starting":
            self._become("draining", "the pod is deleted")
            return [self._tell(), *self._end_server()]
        return []  # it drains already

    # --- the server

    def _server_began(self) -> list[Instruction]:
        if self.state != "starting":
            return []
        self._server_ready = True
        serve: list[Instruction] = [FrontServe(self.revision)] if self._front_up else []
        return serve + self._serves()

    def _serves(self) -> list[Instruction]:
        if self.state != "starting" or not self._server_ready or not self._assigned:
            return []
        self._become("serving", "")
        return [self._tell()]

    def _failed(self, reason: str) -> list[Instruction]:
        if self.state == "starting":
            before = f"{self._fallback}; " if self._fallback and self._fallback not in reason else ""
            self._become("failed", before + reason)
            return [self._tell(), *self._blank(), *([EndServer(0.0)] if self._server else [])]
        return []

    def _server_ended(self, reason: str) -> list[Instruction]:
        if self.state == "starting":
            return self._failed(f"the server {reason} before it was ready: see the pod's log")
        if self.state == "serving":
            self._become("failed", f"the server {reason}: the pod is to be replaced")
            return [self._tell(), *self._end(1, self.reason)]
        if self.state == "draining":
            return self._server_gone()
        return []

    def _drain(self, seconds: float, quiet_s: float, ends: bool) -> list[Instruction]:
        if self._front_up and self._assigned:
            return [FrontDrain(self.revision, seconds, quiet_s, ends)]
        return self._end_server()

    def _drained(self) -> list[Instruction]:
        return self._end_server() if self.state == "draining" else []

    def _end_server(self) -> list[Instruction]:
        self._making_room = False
        if self._woken:
            return self._end_engine()
        return [EndServer(SERVER_GRACE_S)] if self._server else self._server_gone()

    def _server_gone(self) -> list[Instruction]:
        if self._ending:
            return self._end(0, "the pod is deleted")
        if self.engines is not None and self.engines.worn:
            return self._end(1, self.engines.worn)
        if self._outdated:
            return self._end(0, self._outdated)
        if self._cleaning:
            return []
        self._cleaning = True
        return [Clean()]

    def _not_cleaned(self, reason: str) -> list[Instruction]:
        if self._ending:
            return self._end(0, "the pod is deleted")
        self._become(
            "failed", f"{self.revision} has left something behind, the pod is to be replaced: {reason}"
        )
        return [self._tell(), *self._end(0, self.reason)]

    def _cleaned(self) -> list[Instruction]:
        self._cleaning = False
        if self._ending or self._outdated:
            return self._end(0, self._outdated or "the pod is deleted")
        self.assignment = None
        self._started, self._fallback = None, ""
        self._assigned = self._server_ready = self._base_ready = False
        self._become("warming", "it gets its next fork ready")
        return [*self._blank(), CheckBase()]

    # --- the engines of level S2

    def _engine(self, event: EngineEvent) -> list[Instruction]:
        """What has happened to one of them; if it is the server, to that."""
        assert self.engines is not None
        name = event.engine
        orders: list[Instruction] = [*self.engines.handle(event)]
        if name != self._woken:
            if self._making_room and self.assignment is not None and not self.engines.ending:
                return [*orders, *self._begin(self.assignment)]
            return [*orders, *self._settle()]
        match event:
            case EngineWoke() if self.state == "draining":  # given back meanwhile
                return [*orders, *self._end_engine()]
            case EngineWoke(_, took_ms):
                self._started = Started("S2", "", self._steps((("awake", took_ms),)))
                return [*orders, *self._server_began()]
            case EngineMissed(_, reason) if self.state == "starting":
                self._fallback = f"its engine did not wake: {reason}"
            case EngineSlept():
                self._woken = ""
                return [*orders, *self._server_gone()] if self.state == "draining" else orders
            case EngineGone(_, reason):
                return [*orders, *self._woken_gone(reason)]
        return orders

    def _woken_gone(self, reason: str) -> list[Instruction]:
        self._woken = ""
        if self.state == "starting" and self.assignment is not None:
            self._fallback = self._fallback or f"its engine {reason} while it was woken"
            self._server_ready, self._started = False, None
            return self._fork(self.assignment)
        return self._server_ended(reason)

    def _steps(self, steps: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
        """Of its start, with what came before."""
        if self.engines is None or not self.engines.went:
            return steps
        ms = self.engines.went_ms
        return ((SLEEPERS_ENDED, ms), *((name, ms + after) for name, after in steps))

    def _end_engine(self) -> list[Instruction]:
        """It sleeps again; with its pod it ends. One that is on its way is waited for."""
        assert self.engines is not None
        if self._ending:
            return [EndEngine(self._woken, SERVER_GRACE_S)]
        return [*self.engines.sleep(self._woken)]

    # --- base and front

    def _base_died(self, reason: str, hopeless: bool) -> list[Instruction]:
        self._base_ready = False
        self._base_failures += 1
        if self.assignment is None and (hopeless or self._base_failures >= MOST_BASE_FAILURES):
            often = "" if hopeless else f", {self._base_failures} times in a row: see the pod's log"
            self._become("failed", f"{reason}{often}")
            return [self._tell(), *self._blank()]
        again: list[Instruction] = [StartBase(self._base_failures)]
        if self.state in ("ready", "warming"):
            self._become("warming", f"{reason}; {AGAIN}")
            return [self._tell(), *self._blank(), *again]
        return again

    def _front_began(self) -> list[Instruction]:
        self._front_up = True
        self._front_failures = 0
        if self.assignment is None or self.state not in ("starting", "serving"):
            return self._settle() if self.assignment is None else self._blank()
        if self._making_room:
            return []  # it is told with the server
        told: list[Instruction] = [FrontAssign(self.assignment, self._woken)]
        return [*told, FrontServe(self.revision)] if self._server_ready else told

    def _front_died(self, reason: str) -> list[Instruction]:
        self._front_up = self._assigned = False
        self._front_failures += 1
        again: list[Instruction] = [StartFront(self._front_failures)]
        if self.state == "draining":
            return [*again, *self._end_server()]
        if self.state in ("ready", "warming"):
            self._become("warming", f"{reason}; {AGAIN}")
            return [self._tell(), *again]
        return again

    def _settle(self) -> list[Instruction]:
        """Ready, if nothing is missing; the front is told how the slot is."""
        if self.assignment is not None:
            return []
        if self.state == "failed":
            return self._blank()
        engines = self.engines
        begun: list[Instruction] = [*engines.next()] if engines is not None and self._base_ready else []
        settled = engines is None or engines.settled
        if self._base_ready and self._front_up and settled:
            if self.state == "ready":
                return []
            self._become("ready", engines.reason if engines is not None else self._base_note)
            return [*begun, *self._blank(), self._tell()]
        if not self._base_ready:
            missing = "its base imports"
        elif not self._front_up or engines is None:
            missing = "its front begins"
        elif not (awaited := engines.awaited)[0]:
            missing = "an engine ends, for which the GPU has no room"
        else:
            name, why = awaited
            missing = f"engine {name}: {why}; {AGAIN}" if why else f"engine {name} is loaded and put to sleep"
        return [*begun, *self._warms(missing)]

    def _warms(self, missing: str) -> list[Instruction]:
        """What it waits for is told where that is news: engines take long."""
        before = self.state, self.reason
        self._become("warming", missing)
        news = self.engines is not None and before != (self.state, self.reason)
        return [*self._blank(), *([self._tell()] if news else [])]

    def _blank(self) -> list[Instruction]:
        ready = self.state == "ready"
        return [FrontBlank(ready, self.reason)] if self._front_up else []

    def _end(self, code: int, reason: str) -> list[Instruction]:
        self.ended = True
        return [End(code, reason)]

    def _become(self, state: SlotState, reason: str) -> None:
        self.state = state
        self.reason = reason

    def _tell(self, reason: str = "") -> Tell:
        started = self._started if self.state == "serving" else None
        asleep = self.engines.asleep if self.engines is not None else ()
        return Tell(self.state, self.revision, reason or self.reason, started, asleep)
