"""The engines of a standby pod of level S2: started one after the other and put to sleep, woken for a revision.

Whose the device is among those that have slept, sleeping.py says. Here is what is around that: an engine that is
being loaded has the device for itself, so it is started only while all others sleep; one that ends in its sleep is
started again; one that never gets there is given up with the reason; one that could not wake, or go back to sleep, is
killed, and its pod is worn: it may serve on, and is replaced after that. Sleepers keep some of the GPU: where whoever
comes has no room (room.py), the one that was asked for longest ago goes first, and is started again only when there
is room. For one that nobody has asked for nobody goes. Starts and talks to nothing: that is what the instructions are
for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from kserve_ext.core.standby import sleeping
from kserve_ext.core.standby.engine_events import (
    EndEngine,
    EngineEvent,
    EngineGone,
    EngineLoaded,
    EngineMissed,
    EngineOrder,
    EngineSlept,
    EngineWoke,
    SleepEngine,
    StartEngine,
    WakeEngine,
)
from kserve_ext.core.standby.room import Memory, Room, Verdict, out_of_memory
from kserve_ext.core.standby.sleeping import Sleepers

#: Starts in a row that did not end in sleep; then it is given up.
MOST_FAILURES: Final = 3


class Planned(NamedTuple):
    """One engine that is to sleep in this pod."""

    name: str  # as in the annotation
    weights_mib: int  # of its files; as much host memory it needs while it sleeps
    share: float = 0.0  # of the GPU, that must be free when it starts; 0: nobody knows


class Answer(NamedTuple):
    """To whoever comes: orders that make room, after which to ask again; or why not; neither: it fits."""

    orders: tuple[EngineOrder, ...] = ()
    why: str = ""


class PodEngines:
    """`host_mib`: host memory that all weights may take together; `generation`: above all used before."""

    def __init__(self, planned: Iterable[Planned], host_mib: int, generation: int) -> None:
        planned = tuple(planned)
        self._weights = {one.name: one.weights_mib for one in planned}
        self._share = {one.name: one.share for one in planned}
        self.room = Room()
        self._asked: dict[str, int] = {}  # how many had been asked for when it was, last
        self._times = 0
        #: No room on the GPU for them, and why; looked at again whenever one could be started.
        self.left_out: dict[str, str] = {}
        #: Sleepers that went for others since the last one was asked for, and how long that took.
        self.went: list[str] = []
        self.went_ms = 0
        self._short: set[str] = set()  # killed since memory was short when they woke
        self._sleepers = Sleepers(0, host_mib, generation)  # what each needs of the device, it knows itself
        self._failures: dict[str, int] = {}
        self._why: dict[str, str] = {}  # of what has gone wrong last
        #: Between its start and its first sleep; "" = none is.
        self.loading = ""
        #: Killed, and not gone yet.
        self._ending: set[str] = set()
        #: Won't be started again, and why.
        self.given_up: dict[str, str] = {}
        #: Why this pod is to be replaced when it serves nobody; "" = it isn't.
        self.worn = ""

    @property
    def asleep(self) -> tuple[str, ...]:
        """Those that can be woken, in the order of the plan."""
        there = self._sleepers.engines
        those = (name for name in self._weights if name in there and name not in self._ending)
        return tuple(name for name in those if there[name].state == "asleep")

    @property
    def settled(self) -> bool:
        """Nothing is under way, and nothing could be."""
        if self.loading or self._ending or self.worn:
            return not (self.loading or self._ending)
        return all(self._has(name) or name in self.left_out for name in self._weights)

    @property
    def ending(self) -> bool:
        """Some have been told to end, and are there."""
        return bool(self._ending)

    @property
    def reason(self) -> str:
        """Why not all of them sleep here; "" = all do."""
        missing = {**self.given_up, **self.left_out}
        return "; ".join(f"{name} does not sleep here: {why}" for name, why in missing.items())

    @property
    def awaited(self) -> tuple[str, str]:
        """The engine that is waited for while it isn't settled, and what has gone wrong with it before; "": for one
        that ends."""
        missing = (n for n in self._weights if not self._has(n) and n not in self.left_out)
        name = self.loading or next(missing, "")
        return name, self._why.get(name, "")

    def why_not(self, name: str) -> str:
        """Of one that can't be woken."""
        if name not in self._weights:
            return f"{name} is none of its engines"
        why = self.given_up.get(name) or self.left_out.get(name) or self._why.get(name)
        return why or self.worn or f"{name} does not sleep now"

    # --- verbs

    def measured(self, memory: Memory | None) -> None:
        """What the GPU has now; before whatever happens is told. None: it can't be measured."""
        self.room.measured(memory)

    def asked(self, name: str) -> None:
        """A revision wants it, whether it sleeps here or not: from now on it is the one asked for last."""
        self._times += 1
        self._asked[name] = self._times
        self.went, self.went_ms = [], 0

    def next(self) -> list[EngineOrder]:
        """Starts one, if one is missing and nothing is on the device, those asked for last first. Called while nobody
        has the pod."""
        engines = self._sleepers.engines
        if self.loading or self._ending or self.worn or any(e.state != "asleep" for e in engines.values()):
            return []
        missing = [name for name in self._weights if not self._has(name)]
        for name in sorted(missing, key=lambda name: -self._asked.get(name, 0)):
            why = self._sleepers.no_room(name, self._weights[name])
            if why:
                self.given_up[name] = why
                self.left_out.pop(name, None)
                continue
            older = [other for other in self._oldest(name) if self._since(other) < self._since(name)]
            verdict = self.room.to_start(name, self._share[name], older)
            if verdict.victim:
                self.left_out.pop(name, None)
                return list(self._makes_room(f"{name}, which was asked for after it,", verdict))
            if verdict.why:
                self.left_out[name] = verdict.why
                continue
            self.left_out.pop(name, None)
            self.loading = name
            self.room.starts()
            return [StartEngine(name, self._failures.get(name, 0))]
        return []

    def room_to_wake(self, name: str) -> Answer:
        """Asked before `wake`."""
        verdict = self.room.to_wake(name, self._oldest(name))
        return Answer(self._makes_room(f"{name}, which was asked for,", verdict), verdict.why)

    def room_to_fork(self, name: str, share: float) -> Answer:
        """Of a server that is none of the engines here; `name`: the engine that it stands for, or its revision."""
        verdict = self.room.to_start(name, share, self._oldest(""))
        if not verdict.victim and not verdict.why:
            self.room.starts()
        return Answer(self._makes_room(f"the server of {name}", verdict), verdict.why)

    def wake(self, name: str) -> tuple[list[EngineOrder], str]:
        """What to do, or why not: then nothing has changed."""
        if self.loading or self._ending:
            busy = self.loading or min(self._ending)
            return [], f"{busy} is on the device: ask another pod"
        if name not in self._sleepers.engines:
            return [], self.why_not(name)
        return self._told(self._sleepers.handle(sleeping.WakeAsked(name)))

    def sleep(self, name: str) -> list[EngineOrder]:
        """It has no requests any more."""
        self.room.falls()
        self._sleepers.handle(sleeping.Requests(name, 0))
        return self._told(self._sleepers.handle(sleeping.SleepAsked(name)))[0]

    def handle(self, event: EngineEvent) -> list[EngineOrder]:
        match event:
            case EngineLoaded(name):
                if name != self.loading or name in self._ending:
                    return []
                self.room.falls()
                return [SleepEngine(name)]
            case EngineSlept(name):
                return self._slept(name)
            case EngineWoke(name):
                if name not in self._sleepers.engines or name in self._ending:
                    return []
                orders, _ = self._told(self._sleepers.handle(sleeping.Done(name)))
                self._sleepers.handle(sleeping.Requests(name, 1))  # it has a revision
                return orders
            case EngineMissed(name, reason):
                return self._missed(name, reason)
            case EngineGone(name, reason, permanent, took_ms):
                return self._gone(name, reason, permanent, took_ms)

    def check(self) -> None:
        """Invariants, for tests."""
        on_device = [
            n for n, e in self._sleepers.engines.items() if e.state in ("awake", "falling", "waking")
        ]
        on_device += [self.loading] if self.loading else []
        assert len(on_device) <= 1, on_device
        held = sum(self._weights[n] for n in {*self._sleepers.engines, self.loading} - {""})
        assert held <= self._sleepers.host_mib

    # --- inside

    def _has(self, name: str) -> bool:
        return name in self.given_up or name in self._sleepers.engines

    def _since(self, name: str) -> int:
        return self._asked.get(name, 0)

    def _oldest(self, name: str) -> list[str]:
        """All that sleep but this one, in the order in which they go: asked for longest ago, then as planned."""
        return sorted((other for other in self.asleep if other != name), key=self._since)

    def _makes_room(self, for_whom: str, verdict: Verdict) -> tuple[EngineOrder, ...]:
        if not (victim := verdict.victim):
            return ()
        self.left_out[victim] = f"it was ended for {for_whom} since {self.room.story(victim)}"
        self._ending.add(victim)
        return (EndEngine(victim, 0.0, self.left_out[victim]),)

    def _slept(self, name: str) -> list[EngineOrder]:
        if name in self._ending:
            return []
        if name == self.loading:
            self.loading = ""
            self._failures.pop(name, None)
            self._why.pop(name, None)
            self._sleepers.handle(sleeping.Asleep(name, self._weights[name], 0))
            self.room.slept(name)
            return []
        if name not in self._sleepers.engines:
            return []
        self.room.slept(name)
        return self._told(self._sleepers.handle(sleeping.Done(name)))[0]

    def _missed(self, name: str, reason: str) -> list[EngineOrder]:
        if name in self._ending or (name != self.loading and name not in self._sleepers.engines):
            return []
        self._why[name] = reason
        self._ending.add(name)
        if name != self.loading:
            if self._sleepers.engines[name].state == "waking" and out_of_memory(reason):
                self._short.add(name)
            else:
                self._lost(name, reason)
        return [EndEngine(name, 0.0)]

    def _gone(self, name: str, reason: str, permanent: bool, took_ms: int) -> list[EngineOrder]:
        went = name in self._ending and name in self.left_out
        self._ending.discard(name)
        self.room.gone(name)
        if went:  # for another one
            self._sleepers.handle(sleeping.Failed(name, reason))
            self.went.append(name)
            self.went_ms += took_ms
        elif name in self._short:
            self._short.discard(name)
            self.given_up[name] = self._why.pop(name, "") or reason
            self._sleepers.handle(sleeping.Failed(name, reason, gone=True))
        elif name == self.loading:
            self.loading = ""
            self._fail(name, self._why.pop(name, "") or reason, permanent)
        elif name in self._sleepers.engines:
            asleep = self._sleepers.engines[name].state == "asleep"
            self._lost(name, reason)
            if asleep:
                self._fail(name, f"{reason} in its sleep", False)
        return []

    def _fail(self, name: str, reason: str, permanent: bool) -> None:
        self._failures[name] = self._failures.get(name, 0) + 1
        self._why[name] = reason
        if permanent or self._failures[name] >= MOST_FAILURES:
            self.given_up[name] = reason

    def _lost(self, name: str, reason: str) -> None:
        for said in self._sleepers.handle(sleeping.Failed(name, reason)):
            if isinstance(said, sleeping.Replace):
                self.worn = said.reason

    def _told(self, said: list[sleeping.Instruction]) -> tuple[list[EngineOrder], str]:
        orders: list[EngineOrder] = []
        why = ""
        for instruction in said:
            match instruction:
                case sleeping.Sleep(name):
                    orders.append(SleepEngine(name))
                case sleeping.Wake(name, generation):
                    orders.append(WakeEngine(name, generation))
                case sleeping.Refuse(_, reason):
                    why = reason
                case sleeping.Replace(reason):
                    self.worn = reason
        return orders, why
