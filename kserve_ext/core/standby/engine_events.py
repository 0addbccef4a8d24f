"""What can happen to an engine of a standby pod of level S2, and what it can be told to do."""

from __future__ import annotations

from typing import NamedTuple

# --- what happened


class EngineLoaded(NamedTuple):
    """It serves, for the first time: its process is there, and its model on the device."""

    engine: str


class EngineSlept(NamedTuple):
    engine: str


class EngineWoke(NamedTuple):
    engine: str
    took_ms: int = 0


class EngineMissed(NamedTuple):
    """It did not do as it was told, or could not load; its process may be there."""

    engine: str
    reason: str


class EngineGone(NamedTuple):
    """Its process is not there any more, nor anything that it had."""

    engine: str
    reason: str
    permanent: bool = False  # the next would end like this one
    took_ms: int = 0  # since it was told to


EngineEvent = EngineLoaded | EngineSlept | EngineWoke | EngineMissed | EngineGone


# --- what to do


class StartEngine(NamedTuple):
    """Later, if it has died before: `failures` in a row. EngineLoaded, EngineMissed or EngineGone follows."""

    engine: str
    failures: int


class SleepEngine(NamedTuple):
    """Its channels end before. EngineSlept or EngineMissed follows."""

    engine: str


class WakeEngine(NamedTuple):
    """Its KV memory is registered anew, in this generation. EngineWoke or EngineMissed follows."""

    engine: str
    generation: int


class EndEngine(NamedTuple):
    """SIGTERM, after `grace_s` SIGKILL; EngineGone follows."""

    engine: str
    grace_s: float
    reason: str = ""  # of one that did as it was told, and goes for another


EngineOrder = StartEngine | SleepEngine | WakeEngine | EndEngine
