"""Engines of one pod of which one is awake (S2): who sleeps, who wakes, in which order, and why somebody may not.

A sleeping engine has its weights in host memory and nothing on the device, so to wake is quicker than to load, and
there is room for one: the other sleeps before, always. What is refused has changed nothing. One that could not go to
sleep or wake up is lost with its pod's device memory in an unknown state: the pod is to be replaced; not so where its
process has gone since memory was short. Never talks to an engine: the answers say what to tell which, and what it
answers comes back as an event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

State = Literal["awake", "falling", "asleep", "waking", "failed"]

#: In these an engine has memory of the device.
_ON_DEVICE: Final = ("awake", "falling", "waking")


class Asleep(NamedTuple):
    """Event: an engine has come that sleeps. Its weights are in host memory; awake it needs `device_mib`."""

    engine: str
    weights_mib: int
    device_mib: int


class WakeAsked(NamedTuple):
    engine: str


class SleepAsked(NamedTuple):
    engine: str


class Requests(NamedTuple):
    """Event: how many the engine has open."""

    engine: str
    open: int


class Done(NamedTuple):
    """Event: what it was told is done."""

    engine: str


class Failed(NamedTuple):
    """Event: it could not, or its process has ended."""

    engine: str
    reason: str
    gone: bool = False  # its process is known to be, and why it failed leaves nothing in doubt


Event = Asleep | WakeAsked | SleepAsked | Requests | Done | Failed


class Sleep(NamedTuple):
    """Its channels first: KV memory that the device takes back must not be registered any more."""

    engine: str


class Wake(NamedTuple):
    """Its KV memory is registered anew, in this generation; channels of those before are void."""

    engine: str
    generation: int


class Refuse(NamedTuple):
    """Nothing has changed."""

    engine: str
    reason: str


class Replace(NamedTuple):
    """The pod can't be trusted any more."""

    reason: str


Instruction = Sleep | Wake | Refuse | Replace


@dataclass(slots=True)
class Engine:
    state: State
    weights_mib: int
    device_mib: int
    generation: int = 0  # of its channels; 0 = it has never been awake
    requests: int = 0


class Sleepers:
    """The engines of one pod. `generation` is above all that were used before: unix nanoseconds at its start, say."""

    def __init__(self, device_mib: int, host_mib: int, generation: int) -> None:
        """What the pod has of both; of host memory without what the processes need besides weights."""
        self._device_mib = device_mib
        self.host_mib = host_mib
        self._generation = generation
        self.engines: dict[str, Engine] = {}
        self._next = ""  # is woken when the one that falls asleep sleeps
        self._lost = ""

    @property
    def awake(self) -> str:
        """ "" while none is, or one is on its way."""
        return next((name for name, e in self.engines.items() if e.state == "awake"), "")

    def handle(self, event: Event) -> list[Instruction]:
        match event:
            case Asleep(name, weights_mib, device_mib):
                return self._come(name, weights_mib, device_mib)
            case Failed(name, reason, gone):
                return self._failed(name, reason, gone)
        engine = self.engines.get(event.engine)
        if engine is None:
            return [Refuse(event.engine, f"{event.engine} is not in this pod")]
        match event:
            case Requests(_, count):
                engine.requests = count
                return []
            case WakeAsked(name):
                return self._wake_asked(name, engine)
            case SleepAsked(name):
                return self._sleep_asked(name, engine)
            case Done(name):
                return self._done(name, engine)

    def no_room(self, name: str, weights_mib: int) -> str:
        """Why its weights can't be in host memory beside the others'; "" = they can."""
        room = self.host_mib - sum(e.weights_mib for n, e in self.engines.items() if n != name)
        if weights_mib <= room:
            return ""
        return f"its weights need {weights_mib} MiB of host memory, {room} are left: raise the limit"

    def _come(self, name: str, weights_mib: int, device_mib: int) -> list[Instruction]:
        if why := self.no_room(name, weights_mib):
            return [Refuse(name, why)]
        if device_mib > self._device_mib:
            return [Refuse(name, f"it needs {device_mib} MiB of the device, which has {self._device_mib}")]
        if name in self.engines:
            return [Refuse(name, f"{name} is in this pod already")]
        self.engines[name] = Engine("asleep", weights_mib, device_mib)
        return []

    def _wake_asked(self, name: str, engine: Engine) -> list[Instruction]:
        if self._lost:
            return [Refuse(name, self._lost)]
        if engine.state in ("awake", "waking") or self._next == name:
            return []
        if self._next:
            return [Refuse(name, f"{self._next} is being woken: ask another pod")]
        other = next((n for n, e in self.engines.items() if e.state in _ON_DEVICE), "")
        if not other:
            return [self._wake(name, engine)]
        there = self.engines[other]
        if there.state == "waking":
            return [Refuse(name, f"{other} is being woken: ask another pod")]
        if there.state == "awake" and there.requests:
            return [Refuse(name, f"{other} is awake and has {there.requests} requests open: drain it first")]
        self._next = name
        if there.state == "falling":
            return []
        there.state = "falling"
        return [Sleep(other)]

    def _sleep_asked(self, name: str, engine: Engine) -> list[Instruction]:
        if engine.state in ("asleep", "falling"):
            return []
        if engine.state != "awake":
            return [Refuse(name, f"{name} is {engine.state}")]
        if engine.requests:
            return [Refuse(name, f"{name} has {engine.requests} requests open: drain it first")]
        engine.state = "falling"
        return [Sleep(name)]

    def _done(self, name: str, engine: Engine) -> list[Instruction]:
        if engine.state == "waking":
            engine.state = "awake"
            return []
        if engine.state != "falling":
            return [Refuse(name, f"{name} is {engine.state}: nothing was asked of it")]
        engine.state = "asleep"
        following, self._next = self._next, ""
        return [self._wake(following, self.engines[following])] if following else []

    def _wake(self, name: str, engine: Engine) -> Wake:
        self._generation += 1
        engine.state, engine.generation = "waking", self._generation
        return Wake(name, self._generation)

    def _failed(self, name: str, reason: str, gone: bool) -> list[Instruction]:
        engine = self.engines.get(name)
        if engine is None:
            return []
        was, engine.state = engine.state, "failed"
        following, self._next = (
            self._next,
            "" if self._next in (name, "") or was in _ON_DEVICE else self._next,
        )
        if was not in _ON_DEVICE or (gone and not following):
            del self.engines[name]  # what it held was its process's, and has gone with it
            return []
        self._lost = f"{name} failed while it was {was} ({reason}): this pod is to be replaced"
        refused: list[Instruction] = (
            [Refuse(following, self._lost)] if following and following != name else []
        )
        return [*refused, Replace(self._lost)]
