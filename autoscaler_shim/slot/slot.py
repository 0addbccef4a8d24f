"""The slot of a standby pod: carries out what core/standby/slot.py says, on base, front, server and agent.

The first process of its container. When it ends, whatever the reason, nothing of it is left.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from autoscaler_shim.node.watcher import Watcher
from autoscaler_shim.slot.base import Base
from autoscaler_shim.slot.descendants import Reaper, become_first, end_all, end_strays
from autoscaler_shim.slot.engines import Engines, weights_mib
from autoscaler_shim.slot.front import Front
from autoscaler_shim.slot.gpus import Gpus
from autoscaler_shim.slot.line import AgentLine
from autoscaler_shim.slot.scratch import Left, Scratch
from autoscaler_shim.slot.server import Server
from autoscaler_shim.slot.settings import Settings
from autoscaler_shim.slot.values import Values
from kserve_ext.core.backoff import pause_s
from kserve_ext.core.standby.engine_events import (
    EndEngine,
    EngineEvent,
    EngineGone,
    EngineSlept,
    SleepEngine,
    StartEngine,
    WakeEngine,
)
from kserve_ext.core.standby.engines import Planned, PodEngines
from kserve_ext.core.standby.facts import Assignment, Level
from kserve_ext.core.standby.room import share_of
from kserve_ext.core.standby.slot import AGAIN, SlotMachine
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
    StartAsked,
    StartBase,
    StartFront,
    Tell,
    Terminated,
)
from kserve_ext.wire.slot_front import Assign, Assigned, Blank, Drain, Drained, Serve, ToSlot
from kserve_ext.wire.slot_socket import Free, Start, State

log = logging.getLogger(__name__)

LEAST_PAUSE_S, MOST_PAUSE_S = 0.1, 30.0


class Slot:
    """`run` once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._values = Values(settings.values)
        planned = [
            Planned(plan.name, weights_mib(plan.model), share_of(plan.argv)) for plan in settings.engines
        ]
        self._gpus = Gpus(settings.nvml if planned else None)
        generation = time.time_ns()
        pod_engines = PodEngines(planned, settings.host_mib, generation) if planned else None
        self._machine = SlotMachine(settings.pod, settings.quiet_s, pod_engines)
        self._folder = settings.folder or Path(tempfile.mkdtemp(prefix="galaxy-slot-", dir=_memory()))
        self._watcher = Watcher()
        self._reaper = Reaper()
        own = self._reaper.own
        self._base = Base(
            settings.zygote,
            self._folder / "base.sock",
            self._watcher,
            own,
            self._base_ready,
            self._base_died,
        )
        self._engines = Engines(
            settings.engines,
            self._folder,
            self._base,
            self._watcher,
            settings.pod,
            generation,
            settings.wake_s,
            self._engine_said,
        )
        sockets = [self._folder / name for name in ("base.sock", "base.sock.kept", "ready.sock")]
        self._scratch = Scratch(settings.scratch, settings.shared, [*sockets, *self._engines.folders])
        self._base_anew = False  # beside a server
        self._front = Front(
            settings.front_host,
            settings.quiet_s,
            self._watcher,
            own,
            self._front_said,
            lambda why: self._happened(FrontDied(why)),
        )
        kept: Level = "S1" if settings.level == "S1" else "S0"
        self._server = Server(self._folder, self._base, self._watcher, self._server_said, kept)
        self._line = AgentLine(
            settings, time.time_ns(), lambda: self._happened(Connected()), self._agent_ordered
        )
        self._end: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """The exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: self._happened(Terminated()))
        become_first()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)  # a server's environment may hold secrets
        await self._server.listen()
        await self._engines.listen()
        self._carry_out(self._machine.begin())
        line = asyncio.ensure_future(self._line.run())
        self._tasks.add(line)
        if self._settings.values:
            self._tasks.add(asyncio.ensure_future(self._outdated()))
        try:
            end = await self._end
            log.log(logging.INFO if end.code == 0 else logging.ERROR, "the slot ends: %s", end.reason)
            await asyncio.sleep(0)  # what was told last is written
            return end.code
        finally:
            self._close()

    def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for part in (self._base, self._front, self._server, self._engines, self._reaper, self._watcher):
            part.close()
        left = end_all()
        log.info("%d processes of it were ended", left)
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- what happened

    async def _outdated(self) -> None:
        reason = await self._values.changed()
        log.info("%s: it takes no revision any more", reason)
        self._happened(Outdated(reason))

    def _happened(self, event: Event) -> None:
        if self._machine.engines is not None:
            self._machine.engines.measured(self._gpus.memory())
        self._carry_out(self._machine.handle(event))

    def _base_ready(self, note: str) -> None:
        if self._machine.assignment is None:
            self._scratch.remember()
            self._base_anew = False
        self._happened(BaseReady(note if self._settings.level == "S1" else ""))

    def _base_died(self, why: str, hopeless: bool) -> None:
        """A server lives on; an engine that it kept ready, or a fork that nobody has heard of, does not."""
        strays = end_strays({*self._reaper.own, self._server.pid, *self._engines.pids})
        if strays:
            log.warning("%s and has left processes, which are ended: %s", why, strays)
        self._base_anew = self._machine.assignment is not None
        self._happened(BaseDied(why, hopeless))

    def _server_said(self, event: Event) -> None:
        """What a server has left in sessions of its own goes before another revision is served here."""
        if isinstance(event, ServerEnded):
            strays = end_strays({*self._reaper.own, *self._engines.pids})
            if strays:
                log.warning("the server has left processes, which are ended: %s", strays)
            self._gone(event)
            return
        self._happened(event)

    def _engine_said(self, event: EngineEvent) -> None:
        """Likewise: what an engine that has ended has left may hold the device."""
        if isinstance(event, EngineGone):
            strays = end_strays({*self._reaper.own, self._server.pid, *self._engines.pids})
            if strays:
                log.warning("engine %s has left processes, which are ended: %s", event.engine, strays)
            self._gone(event)
            return
        self._happened(event)
        if isinstance(event, EngineSlept) and self._machine.engines is not None:
            log.info("engine %s: %s", event.engine, self._machine.engines.room.said(event.engine))

    def _gone(self, event: EngineGone | ServerEnded) -> None:
        """What it had of the GPU is free when that is said; but who serves has to say at once that it doesn't."""
        if self._gpus.there and self._machine.state != "serving":
            self._soon(self._freed(event))
        else:
            self._happened(event)

    async def _freed(self, event: EngineGone | ServerEnded) -> None:
        took_s = await self._gpus.quiet()
        if isinstance(event, EngineGone):
            event = event._replace(took_ms=event.took_ms + round(1000 * took_s))
        self._happened(event)

    def _front_said(self, message: ToSlot) -> None:
        if isinstance(message, Assigned):
            self._happened(FrontAssigned(message.revision))
        elif isinstance(message, Drained):
            if message.cut:
                log.warning(
                    "%s: %d exchanges were not done in time, and were cut off", message.revision, message.cut
                )
            self._happened(FrontDrained(message.revision))
        else:
            self._happened(FrontUp())

    def _agent_ordered(self, order: Start | Free) -> None:
        if isinstance(order, Start):
            self._happened(StartAsked(order.assignment))
        else:
            self._happened(FreeAsked(order.revision))

    # --- what to do

    def _carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            self._carry_out_one(instruction)

    def _carry_out_one(self, instruction: Instruction) -> None:
        match instruction:
            case Tell(state, revision, reason, started, asleep):
                if state == "ready" and self._settings.engines:
                    self._scratch.remember()  # what its engines have written by now is theirs
                level = logging.WARNING if state == "failed" or reason.endswith(AGAIN) else logging.INFO
                fallback = f", from {started.level}: {started.why}" if started and started.why else ""
                log.log(
                    level,
                    "%s%s%s%s",
                    state,
                    f" {revision}" if revision else "",
                    f": {reason}" if reason else "",
                    fallback,
                )
                self._line.tell(State(state, revision, reason, started, asleep))
            case Fork(assignment):
                self._server.start(assignment)
            case FrontAssign(assignment, engine):
                told = with_port(assignment, self._engines.port(engine)) if engine else assignment
                self._front.tell(Assign(told))
            case StartEngine() | SleepEngine() | WakeEngine() | EndEngine():
                self._engines.carry_out(instruction)
            case FrontServe(revision):
                self._front.tell(Serve(revision))
            case FrontBlank(ready, reason):
                self._front.tell(Blank(ready, reason))
            case FrontDrain(revision, seconds, quiet_s, ends):
                self._front.tell(Drain(revision, seconds, quiet_s, ends))
            case EndServer(grace_s):
                self._server.end(grace_s)
            case Clean():
                self._soon(self._clean())
            case CheckBase():
                self._base.check()
            case StartBase(failures):
                self._later(failures, self._base.start)
            case StartFront(failures):
                self._later(failures, self._front.start)
            case End():
                self._end.set_result(instruction)

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _clean(self) -> None:
        if self._base_anew and self._settings.level == "S1":
            # What is new may be the engine's that it keeps.
            why = "its base was started anew beside it, and which files are whose isn't known"
            self._happened(NotCleaned(why))
            return
        try:
            count = await asyncio.to_thread(self._scratch.clean)
        except (Left, OSError) as error:
            self._happened(NotCleaned(str(error)))
            return
        if count:
            log.info("%s has left files, %d were deleted", self._machine.revision, count)
        self._happened(Cleaned())

    def _later(self, failures: int, start: Callable[[], None]) -> None:
        if failures:
            pause = pause_s(failures, LEAST_PAUSE_S, MOST_PAUSE_S, random.random())
            asyncio.get_running_loop().call_later(pause, start)
        else:
            start()


def with_port(assignment: Assignment, port: int) -> Assignment:
    """Its server listens elsewhere than it says, and its probe asks there."""
    probe = assignment.probe
    try:
        found = json.loads(probe) if probe else None
    except ValueError:
        found = None  # the front says what is wrong with it
    for one in found if isinstance(found, list) else [found]:
        for action in ("httpGet", "tcpSocket", "grpc"):
            asked = one.get(action) if isinstance(one, dict) else None
            if isinstance(asked, dict) and str(asked.get("port")) == str(assignment.port):
                asked["port"] = port
    return assignment._replace(port=port, probe=json.dumps(found) if found is not None else probe)


def _memory() -> str | None:
    """A place for files that no disk has to see; None: the system's temporary one. Writable in every container."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
