"""Carries out what the node's machine decides about instances: fetch, launch, signal, forget.

Each outcome goes back to the machine as an event, and what that answers is carried out in turn. Here are the
tasks and processes of one agent; nothing here decides, and all that must outlive the agent is in the instance's
folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoscaler_shim.node import logs, model_files
from autoscaler_shim.node.folders import NodeFolder, remove, write_json
from autoscaler_shim.node.process_backend import Launched, LaunchFailed, ProcessBackend, Spec
from autoscaler_shim.node.processes import NOBODY, Process
from autoscaler_shim.node.readiness import PROBE_PERIOD_S, Said, answers, read_status
from autoscaler_shim.node.watcher import Exit, Watcher
from kserve_ext.core.facts import Revision
from kserve_ext.core.ids import FunctionID, InstanceID
from kserve_ext.core.node.facts import Ended, Fetch, Instruction, Launch, Order, Signal
from kserve_ext.core.node.machine import NodeMachine
from kserve_ext.core.pulse import HUNG_S, Pulse
from kserve_ext.fluid.preload import ModelUnavailable, ModelUnusable, Near, Preloader, Progress

log = logging.getLogger(__name__)

KEEP_ENDED = 50  # folders of ended instances, for their logs
_NO_HOME = FunctionID("")


@dataclass(slots=True)
class Running:
    """What this agent knows of an instance beyond the machine's account."""

    folder: Path
    process: Process | None = None
    spec: Spec | None = None
    port: socket.socket | None = None
    model_folder: str = ""
    status_seen: int = 0  # st_mtime_ns of the status.json that was read last
    said: Said | None = None
    progress: Progress | None = None
    waiting: asyncio.Future[None] | None = None  # for a zygote: the launch can still be given up
    probe: asyncio.Task[None] | None = None
    pulse: Pulse = field(default_factory=Pulse)


class Instances:
    def __init__(
        self,
        machine: NodeMachine,
        folder: NodeFolder,
        backend: ProcessBackend,
        watcher: Watcher,
        models: Preloader,
        now: Callable[[], float],
        carry_out: Callable[[Iterable[Instruction]], None],
    ) -> None:
        self.machine, self.folder, self.backend, self.watcher = machine, folder, backend, watcher
        self.models, self.now, self.carry_out = models, now, carry_out
        self.running: dict[InstanceID, Running] = {}
        self._felt_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    # --- instructions

    def fetch(self, i: Fetch) -> None:
        self._task(self._fetch(i.instance, self._of(i.instance)))

    def launch(self, i: Launch) -> None:
        self._task(self._launch(i, self._of(i.instance)))

    def signal(self, i: Signal) -> None:
        running = self.running[i.instance]
        if running.process is None:
            if running.waiting is not None:
                running.waiting.cancel()
            return
        life = self.machine.lives.known[i.instance]
        if life.end is not None:
            facts = {"failed": life.end.failed, "reason": life.end.reason, "kill_at": i.kill_at}
            write_json(running.folder / "drain.json", facts)
        if i.kill:
            running.process.kill_group()
        else:
            running.process.terminate()

    def ended(self, i: Ended) -> None:
        self.models.let_go(i.instance)
        running = self.running.pop(i.instance, None)
        if running is None:
            return
        if running.probe is not None:
            running.probe.cancel()
        if running.port is not None:
            running.port.close()
        with contextlib.suppress(OSError):
            write_json(running.folder / "ended.json", {"at": self.now()})
        self._prune()

    # --- found after a restart

    def adopt(self, instance: InstanceID, spec: Spec, process: Process) -> None:
        running = self._of(instance)
        running.spec, running.process, running.model_folder = spec, process, spec.model_folder
        if spec.model_folder:
            self.models.keep(instance, Path(spec.model_folder))
        self._follow(instance, running, None)

    # --- what instances say

    def look(self) -> None:
        """Reads the status files that have changed."""
        for instance, running in list(self.running.items()):
            try:
                seen = (running.folder / "status.json").stat().st_mtime_ns
            except OSError:
                continue
            if running.spec is None or seen == running.status_seen:
                continue
            said = read_status(running.folder)
            if said is not None:
                running.status_seen, running.said = seen, said
                addr = f"{running.spec.host}:{said.port or running.spec.port}"
                self._observed(instance, running, said.phase, addr, said)

    def feel(self) -> None:
        """Whether those that touch their `pulse` still do; a foreign command says nothing of the kind."""
        now = self.now()
        gap, self._felt_at = now - self._felt_at, now
        for instance, running in list(self.running.items()):
            try:
                stamp = (running.folder / "pulse").stat().st_mtime_ns
            except OSError:
                continue
            if gap > HUNG_S / 2:
                running.pulse.rest(now)  # this agent was stopped itself
            elif (quiet := running.pulse.quiet_s(stamp, now)) > HUNG_S:
                self.carry_out(self.machine.lives.hung(instance, quiet, now))

    def bound_logs(self) -> None:
        for running in self.running.values():
            if logs.bound(running.folder / "log"):
                log.info("log of %s was past its bound: emptied, kept once as log.1", running.folder.name)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    # --- inside

    async def _fetch(self, instance: InstanceID, running: Running) -> None:
        revision = self.machine.lives.known[instance].revision
        try:
            self.backend.announce(self._order(instance))
            near = await self.near(revision, lambda progress: setattr(running, "progress", progress))
        except (ModelUnusable, ModelUnavailable, OSError) as error:
            permanent = isinstance(error, ModelUnusable)
            self.carry_out(
                self.machine.lives.fetch_failed(instance, f"model: {error}", permanent, self.now())
            )
            return
        running.model_folder = str(near.folder)
        if instance in self.running:
            self.models.keep(instance, near.folder)
            self.carry_out(self.machine.lives.fetched(instance, near.how, self.now()))

    async def near(self, revision: Revision, progress: Callable[[Progress], None]) -> Near:
        """The model of a revision, brought near. Raises ModelUnusable or ModelUnavailable."""
        if revision.command.zygote:  # our own runtimes load transformers: better said here than by the engine
            source = Path(revision.model.path)
            with contextlib.suppress(model_files.ModelMissing):  # there may be a copy
                files = await asyncio.to_thread(model_files.manifest, source)
                model_files.check(source, files, transformer=True)
        return await self.models.fetch(revision.model, progress)

    async def _launch(self, i: Launch, running: Running) -> None:
        try:
            if not await self._may_launch(i.instance, running):
                reason = "it was given up while it waited for a zygote"
                self.carry_out(self.machine.lives.launch_failed(i.instance, reason, False, self.now()))
                return
            launched = await self.backend.launch(self._order(i.instance), i.devices, running.model_folder)
        except LaunchFailed as error:
            self.carry_out(
                self.machine.lives.launch_failed(i.instance, str(error), error.permanent, self.now())
            )
            return
        except OSError as error:
            reason = f"it can't be started on this node: {error}"
            self.carry_out(self.machine.lives.launch_failed(i.instance, reason, False, self.now()))
            return
        self._launched(i.instance, running, launched)

    async def _may_launch(self, instance: InstanceID, running: Running) -> bool:
        """Waits for the zygote; False when the launch was given up meanwhile."""
        order = self._order(instance)
        self.backend.announce(order)
        running.waiting = asyncio.ensure_future(self.backend.wait(order))
        await asyncio.wait([running.waiting])
        given_up, running.waiting = running.waiting.cancelled(), None
        return not given_up

    def _launched(self, instance: InstanceID, running: Running, launched: Launched) -> None:
        running.process, running.spec, running.port = launched.process, launched.spec, launched.port
        self.carry_out(
            self.machine.lives.launched(instance, launched.how, launched.spec.generation, self.now())
        )
        self._follow(instance, running, launched)

    def _follow(self, instance: InstanceID, running: Running, launched: Launched | None) -> None:
        assert running.process is not None
        assert running.spec is not None
        self.watcher.watch(
            running.process,
            lambda exit: self._exited(instance, exit),
            child=launched.child if launched else None,
            folder=running.folder,
            parent=self._who_tells(running.process, running.spec),
        )
        if not running.spec.order.revision.command.zygote:
            running.probe = self._task(self._probe(instance, running, running.spec))

    def _who_tells(self, process: Process, spec: Spec) -> Process:
        """The zygote that will write how it ended: none where it was executed, or its zygote has gone."""
        module = spec.order.revision.command.zygote
        return self.backend.zygotes.parent(process, module) if module else NOBODY

    async def _probe(self, instance: InstanceID, running: Running, spec: Spec) -> None:
        """A foreign command does not say when it is ready: ask it, until it is or something else happens."""
        path = spec.order.revision.command.ready_path
        while instance in self.running and self.machine.lives.known[instance].state == "starting":
            if await answers(spec.host, spec.port, path):
                self._observed(instance, running, "ready", f"{spec.host}:{spec.port}", None)
                return
            await asyncio.sleep(PROBE_PERIOD_S)

    def _observed(
        self, instance: InstanceID, running: Running, phase: str, addr: str, said: Said | None
    ) -> None:
        if phase == "ready":
            if running.port is not None:
                running.port.close()
            write_json(running.folder / "ready.json", {"addr": addr})
        marks = said.marks if said else ()
        self.carry_out(self.machine.lives.observed(instance, phase, addr, marks, self.now()))

    def _exited(self, instance: InstanceID, exit: Exit) -> None:
        running = self.running[instance]
        self.look()
        said = running.said
        detail = said.error if said is not None and said.error else logs.last_words(running.folder / "log")
        self.carry_out(self.machine.lives.exited(instance, exit.code, exit.signum, detail, self.now()))

    def _order(self, instance: InstanceID) -> Order:
        """What the next agent needs of it."""
        life = self.machine.lives.known[instance]
        home = self.machine.homes.addr(life.revision.key)
        return Order(life.id, life.revision, life.epoch, _NO_HOME, home, marks=tuple(life.marks))

    def _of(self, instance: InstanceID) -> Running:
        return self.running.setdefault(instance, Running(self.folder.instance(instance)))

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("carrying out an instruction failed", exc_info=task.exception())

    def _prune(self) -> None:
        ended = list(self.folder.instances.glob("*/ended.json"))
        if len(ended) > KEEP_ENDED:
            ended.sort(key=lambda file: file.stat().st_mtime_ns)
            for file in ended[:-KEEP_ENDED]:
                remove(file.parent)
