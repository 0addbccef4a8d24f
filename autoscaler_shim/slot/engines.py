"""The engines of a pod of level S2 as processes: each a server of its own, forked from the base, on loopback only.

Carries out what core/standby/engines.py says, and tells what came of it. An order that is not done in time is no
better than one that failed: the engine's process is ended then, and what it had of the device is free.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from autoscaler_shim.node.watcher import Watcher
from autoscaler_shim.slot import orders
from autoscaler_shim.slot.base import Base
from autoscaler_shim.slot.server import Server
from autoscaler_shim.slot.settings import EnginePlan
from kserve_ext.core.backoff import pause_s
from kserve_ext.core.ids import InstanceID, RevisionKey
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
from kserve_ext.core.standby.facts import Assignment, Timeouts
from kserve_ext.core.standby.slot_events import Event, ServerEnded, ServerFailed, ServerReady
from kserve_ext.rpc.ports import free_port

log = logging.getLogger(__name__)

LEAST_PAUSE_S, MOST_PAUSE_S = 0.5, 60.0
#: From the order to sleep. Channels end first, and each waits for what is under way.
SLEEP_S: Final = 120.0
#: What weights are in, as runtimes name it; a folder that has none of these counts whole.
WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".gguf")


class Engines:
    """`listen` first, `close` last."""

    def __init__(
        self,
        plans: tuple[EnginePlan, ...],
        folder: Path,
        base: Base,
        watcher: Watcher,
        instance: str,
        generation: int,
        wake_s: float,
        happened: Callable[[EngineEvent], None],
    ) -> None:
        """`instance`: the pod's name; `generation`: of the channels of engines that have never been awake, below all
        that they wake in; `wake_s`: an engine that takes longer to wake is given up."""
        self._happened = happened
        self._wake_s = wake_s
        self._engines = {
            plan.name: _Engine(
                plan, folder / f"engine-{number}", base, watcher, instance, generation, self._said
            )
            for number, plan in enumerate(plans)
        }
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._told: dict[str, float] = {}  # when, of those that end

    @property
    def pids(self) -> set[int]:
        return {engine.server.pid for engine in self._engines.values()} - {0}

    @property
    def folders(self) -> list[Path]:
        return [engine.folder for engine in self._engines.values()]

    def port(self, name: str) -> int:
        """Where it listens now."""
        return self._engines[name].port

    async def listen(self) -> None:
        for engine in self._engines.values():
            engine.folder.mkdir(parents=True, exist_ok=True)
            await engine.server.listen()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for timer in self._timers.values():
            timer.cancel()
        for engine in self._engines.values():
            engine.server.close()

    def carry_out(self, order: EngineOrder) -> None:
        engine = self._engines[order.engine]
        match order:
            case StartEngine(name, failures):
                pause = pause_s(failures, LEAST_PAUSE_S, MOST_PAUSE_S, random.random()) if failures else 0.0
                log.info("engine %s is started%s", name, f" in {pause:.1f} s" if failures else "")
                self._timers[name] = asyncio.get_running_loop().call_later(pause, engine.start)
            case SleepEngine(name):
                self._order(
                    name, orders.sleep(engine.server.folder, engine.port), SLEEP_S, EngineSlept(name), "sleep"
                )
            case WakeEngine(name, generation):
                done = EngineWoke(name)
                told = orders.wake(engine.server.folder, engine.port, generation)
                self._order(name, told, self._wake_s, done, "wake")
            case EndEngine(name, grace_s, reason):
                if reason:
                    log.warning("engine %s: %s", name, reason)
                self._told[name] = asyncio.get_running_loop().time()
                engine.server.end(grace_s)

    # --- inside

    def _order(
        self, name: str, told: Coroutine[Any, Any, None], limit_s: float, done: EngineEvent, what: str
    ) -> None:
        async def carry_out() -> None:
            begun = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(limit_s):
                    await told
            except TimeoutError:
                event: EngineEvent = EngineMissed(name, f"no {what} within {limit_s:g} s")
            except (OSError, ValueError, orders.NotDone) as error:
                event = EngineMissed(name, str(error))
            else:
                event = done
            took_s = asyncio.get_running_loop().time() - begun
            if isinstance(event, EngineWoke):
                event = event._replace(took_ms=round(1000 * took_s))
            if isinstance(event, EngineMissed):
                log.warning("engine %s can't %s: %s; its process is ended", name, what, event.reason)
            else:
                log.info("engine %s: %s, %.3f s", name, what, took_s)
            self._happened(event)

        task = asyncio.get_running_loop().create_task(carry_out(), name=f"{what} {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _said(self, name: str, event: Event) -> None:
        """Its server has begun, failed or ended."""
        match event:
            case ServerReady():
                self._happened(EngineLoaded(name))
            case ServerFailed(reason):
                log.warning("engine %s: %s", name, reason)
                self._happened(EngineMissed(name, reason))
            case ServerEnded(reason, permanent):
                log.warning("engine %s %s", name, reason)
                now = asyncio.get_running_loop().time()
                took_s = now - self._told.pop(name, now)
                self._happened(EngineGone(name, reason, permanent, round(1000 * took_s)))


class _Engine:
    def __init__(
        self,
        plan: EnginePlan,
        folder: Path,
        base: Base,
        watcher: Watcher,
        instance: str,
        generation: int,
        said: Callable[[str, Event], None],
    ) -> None:
        self._plan = plan
        self._instance = InstanceID(instance)
        self._generation = generation
        self.folder = folder
        self.port = 0
        self.server = Server(folder, base, watcher, lambda event: said(plan.name, event))

    def start(self) -> None:
        """On a port that nobody has now, nor is given while it loads. One that somebody takes all the same fails it,
        and it is started again."""
        self.port = free_port()
        own = ("--host", "127.0.0.1", "--port", str(self.port))
        self.server.start(
            Assignment(
                revision=RevisionKey(""),
                instance=self._instance,
                argv=(*(word.replace("$", "$$") for word in self._plan.argv), *own),
                env=(
                    *((name, value.replace("$", "$$")) for name, value in self._plan.env),
                    ("GALAXY_GENERATION", str(self._generation)),
                ),
                port=self.port,
                http2=False,
                concurrency=0,
                timeouts=Timeouts(),
                probe="",
                labels=(),
            )
        )


def weights_mib(path: Path) -> int:
    """What lies there, rounded up; 0 where nothing can be read: its engine will say so."""
    try:
        if path.is_file():
            return -(-path.stat().st_size // (1 << 20))
        files = [file for file in path.rglob("*") if file.is_file()]
        weights = [file for file in files if file.suffix in WEIGHTS] or files
        # Both of a pair are there in some repositories; one of them is loaded.
        if any(file.suffix == ".safetensors" for file in weights):
            weights = [file for file in weights if file.suffix == ".safetensors"]
        return -(-sum(file.stat().st_size for file in weights) // (1 << 20))
    except OSError:
        return 0
