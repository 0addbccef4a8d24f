"""One chaos run: a cluster, its load, the faults of a schedule; then everything is deleted, and nothing may be left.

It only does and records. What it did is judged afterwards, from the history alone (checker.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from kserve_ext.core.ids import FunctionID, InstanceID
from kserve_ext.rpc import RpcError
from kserve_ext.rpc.history import History
from kserve_ext.wire.messages import Stop
from tests.chaos.cluster import Cluster, Part
from tests.chaos.faults import Fault, Schedule, facts_of
from tests.chaos.history import Event, load
from tests.chaos.network import Network
from tests.chaos.observer import Observer
from tests.chaos.plans import Plan
from tests.chaos.statestore import StateStore
from tests.support.processes import lives

#: Only ends a hang.
UP_S = 100.0
#: A function that the controller adds is waited for so long: they come with the load, and go with it.
FUNCTION_S = 8.0
#: An epoch that every node has left behind.
LONG_AGO = 1

Say = Callable[[str], None]


class Run:
    def __init__(
        self,
        folder: Path,
        schedule: Schedule,
        plan: Plan,
        say: Say,
        bug: str = "",
        network: Network | None = None,
    ) -> None:
        self.schedule, self.plan, self.say_so = schedule, plan, say
        self.said = History("runner", str(folder / "history"))
        self.cluster = Cluster(folder, plan.shape, self.said, bug, network)
        self.observer = Observer(self.cluster.history, self.said)

    async def go(self) -> None:
        cluster = self.cluster
        begun: list[asyncio.Task[None]] = []
        try:
            await cluster.start()
            self.observer.start()
            for revision in self.plan.services(cluster.history):
                cluster.apply(revision)
            up = await cluster.until(self._up, UP_S)
            assert up, f"the cluster did not come up within {UP_S:g} s: see {cluster.data / 'log'}"
            self.said.say("begin", apart=self.plan.shape.apart)
            asking = self.plan.load(cluster, self.schedule.seed).run(self.schedule.seconds)
            begun += [asyncio.create_task(asking), asyncio.create_task(self._faults())]
            for task in begun:
                await task
            await self._end()
        finally:
            await self._stop(begun)
            self._wake_instances()
            await cluster.close()
            self.observer.look()
            await asyncio.sleep(0.1)
            self.observer.close()
            for file in sorted((cluster.data / "log").glob("*.log")):
                for error in raised(file.read_text(errors="replace")):
                    self.said.say("raised", part=file.stem, error=error)

    def _up(self) -> bool:
        """Every part runs, every Dispatch function knows the services, and those that want an instance have one."""
        run = self.cluster.data / "run"
        if not all((run / f"{part}.json").exists() for part in self.cluster.parts):
            return False
        services = self.cluster.services
        wanting = {key for key in services if services[key].scale.min}
        if not wanting <= {began["revision"] for began in self.observer.living.values()}:
            return False
        known = {(e.by, e["revision"]) for e in load(self.cluster.history, "dispatch-*") if e.what == "knows"}
        return known >= {(shard, key) for shard in self.cluster.shards for key in services}

    async def _stop(self, begun: list[asyncio.Task[None]]) -> None:
        """Nothing asks or breaks any more: a fault that is still to come would bring parts back while they end."""
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)

    async def _end(self) -> None:
        """Everything is deleted: nothing is left."""
        for key in list(self.cluster.services):
            self.cluster.delete(key)
        await self.cluster.until(lambda: not self.observer.living, self.plan.gone_s)
        left = [[began["instance"], pid] for pid, began in self.observer.living.items()]
        self.said.say("finished", left=left)

    # --- faults

    async def _faults(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as under_way:  # what fails in one of them fails the run
            for fault in self.schedule.faults:
                await asyncio.sleep(max(0.0, began + fault.at - loop.time()))
                under_way.create_task(self._carry_out(fault))

    async def _carry_out(self, fault: Fault) -> None:
        began = asyncio.get_running_loop().time()
        if fault.kind.endswith("-function"):
            await self.cluster.until(lambda: bool(self._functions()), FUNCTION_S)
        target = self._target(fault)
        if target is None:
            self.say_so(f"{fault.at:7.2f} s: {fault.kind}: there is none")
            return
        self.said.say("fault", **facts_of(fault), on=str(target))
        self.say_so(f"{fault.at:7.2f} s: {fault.kind} {target} {fault.seconds or fault.amount:g} s")
        if fault.kind == "late-stop":
            await self._late_stop(target)
        elif isinstance(target, StateStore):
            await target.suffer(fault.kind, fault.seconds)
        elif isinstance(target, Part):
            await self._on_part(fault, target)
        else:
            await self._on_process(fault, target)
        self.said.say("fault_over", **facts_of(fault), on=str(target), since=began)

    def _target(self, fault: Fault) -> Part | StateStore | int | None:
        if fault.target == "store":
            return self.cluster.redis
        if fault.target == "leader":
            return self.cluster.parts[self._leader()]
        if not fault.kind.endswith(("-instance", "-zygote", "-stop", "-function")):
            return self.cluster.parts[fault.target]
        number = int(fault.target)
        if fault.kind == "kill-zygote":
            pids = [pid for part in self._nodes() for pid in _zygotes(self.cluster.data / "nodes" / part.id)]
        elif fault.kind.endswith("-function"):
            pids = self._functions()
        else:
            pids = sorted(self.observer.living)
        return pids[number % len(pids)] if pids else None

    def _leader(self) -> str:
        """Whoever has published last, as far as is written."""
        said = [e for e in load(self.cluster.history, "controller-*") if e.what == "published"]
        return said[-1].by if said else "controller-0"

    def _functions(self) -> list[int]:
        """Living processes of functions that the controller has added: their histories carry their pids."""
        pids = sorted(
            int(file.name.split(".")[-2]) for file in self.cluster.history.glob("schedule-e*.jsonl")
        )
        return [pid for pid in pids if lives(pid)]

    def _nodes(self) -> list[Part]:
        return [part for part in self.cluster.parts.values() if part.kind == "node"]

    async def _on_part(self, fault: Fault, part: Part) -> None:
        cluster = self.cluster
        match fault.kind:
            case "kill":
                part.held_down = True
                cluster.signal(part, signal.SIGKILL)
                await asyncio.sleep(fault.seconds)
                await cluster.bring_back(part)
            case "pause":
                pid = part.pid
                cluster.signal(part, signal.SIGSTOP)
                await asyncio.sleep(fault.seconds)
                if part.pid == pid:
                    cluster.signal(part, signal.SIGCONT)
            case "clock":
                cluster.shift_clock(part, fault.amount)
            case "resend" | "slow" | "silent" | "lost":
                part.weather.append((fault.kind, fault.amount))
                cluster.set_weather(part)
                await asyncio.sleep(fault.seconds)
                part.weather.remove((fault.kind, fault.amount))
                cluster.set_weather(part)
            case "cut" if cluster.network is not None:
                cluster.network.cut(part.id)
                await asyncio.sleep(fault.seconds)
                cluster.network.heal(part.id)
            case _:
                raise ValueError(f"there is no fault {fault.kind!r}")

    async def _on_process(self, fault: Fault, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if not fault.kind.startswith("pause"):
                os.kill(pid, signal.SIGKILL)
                return
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(fault.seconds)
            if fault.kind == "pause-function" or pid in self.observer.living:
                os.kill(pid, signal.SIGCONT)

    async def _late_stop(self, pid: Part | StateStore | int) -> None:
        """What a home of long ago has sent arrives only now."""
        began = self.observer.living.get(pid) if isinstance(pid, int) else None
        assert self.cluster.rpc is not None
        if began is None:
            return
        file = self.cluster.data / "run" / f"{began['node']}.json"
        message = Stop(InstanceID(began["instance"]), LONG_AGO, FunctionID("dispatch-0"), 0.0, "it came late")
        with contextlib.suppress(RpcError, OSError):
            await self.cluster.rpc.call(json.loads(file.read_text())["rpc"], message, 1.0)

    def _wake_instances(self) -> None:
        for pid in self.observer.living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def raised(log: str) -> list[str]:
    """The last line of each traceback in a part's log."""
    found = []
    for after in log.split("Traceback (most recent call last):")[1:]:
        told = [line for line in after.splitlines()[1:] if line and not line.startswith(" ")]
        found.append(told[0] if told else "")
    return found


def _zygotes(node: Path) -> list[int]:
    found = []
    for file in sorted((node / "zygotes").glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(json.loads(file.read_text())["pid"]))
    return found


def began_of(events: list[Event]) -> float:
    return next((e.t for e in events if e.what == "begin"), 0.0)
