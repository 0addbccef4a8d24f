"""One container of a pod: a process in the pod's namespace, started again when it ends, until the pod is deleted."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from e2e.stack import network
from e2e.stack.kubelet import environment, mounts, probes, programs
from e2e.stack.place import CLONE

Object = dict[str, Any]
#: A first restart is immediate; the kubelet's own back-off (10 s to 5 min) would make the tests wait.
_BACKOFF_S = (0.0, 1.0, 2.0, 5.0, 10.0)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Container:
    """`changed` is called whenever `status()` may have changed."""

    def __init__(
        self,
        spec: Object,
        namespace: str,
        target: probes.Target,
        log: Path,
        changed: Callable[[], None],
        others: Callable[[], Collection[int]],
        births: asyncio.Lock,
        restart: str = "Always",
    ) -> None:
        """`others`: pids of the pod's other containers, none of which is being born under the pod's `births`."""
        self.spec = spec
        #: How it ended for good, None: it has not.
        self.exit_code: int | None = None
        self._restart = restart
        self.name: str = spec["name"]
        self.ready = False
        self.env: dict[str, str] = {}
        self.mounts: list[mounts.Mount] = []
        self.images: Mapping[str, Sequence[str]] = {}  # what stands for some, see programs.py
        self._namespace = namespace
        self._target = target
        self._log = log
        self._changed = changed
        self._others = others
        self._births = births
        self._process: asyncio.subprocess.Process | None = None
        self._restarts = 0
        self._started = False
        self._state: Object = {"waiting": {"reason": "ContainerCreating"}}
        self._last: Object = {}
        self._stop = asyncio.Event()

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        return self._process.pid if self._process and self._process.returncode is None else 0

    async def run(self) -> None:
        """Until the process has ended, and `stop` was called or the pod's restartPolicy has no other follow."""
        words = [environment.expand(word, self.env) for word in programs.argv(self.spec, self.images)]
        program = mounts.mounting(words, self.mounts)
        argv = network.command(self._namespace, program)
        while not self._stop.is_set():
            async with self._births:
                with self._log.open("ab") as log:
                    self._process = await asyncio.create_subprocess_exec(
                        *argv,
                        env=self.env,
                        cwd=CLONE,
                        stdin=asyncio.subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
            started = now()
            self._state = {"running": {"startedAt": started}}
            self._changed()
            watching = asyncio.create_task(self._probe())
            status = await self._process.wait()
            self._signal_group(signal.SIGKILL)
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            self.ready = self._started = False
            # As in a container, whose other processes end with its first; also those in sessions of their own.
            async with self._births:
                await asyncio.to_thread(network.end, self._namespace, self._others())
            code = status if status >= 0 else 128 - status
            ended = {"exitCode": code, "startedAt": started, "finishedAt": now()}
            ended["reason"] = "Completed" if code == 0 else "Error"
            over = self._restart == "Never" or (self._restart == "OnFailure" and code == 0)
            if over or self._stop.is_set():
                self._state = {"terminated": ended}
                self.exit_code = code
                break
            self._last = {"terminated": ended}
            self._state = {"waiting": {"reason": "CrashLoopBackOff", "message": f"ended with status {code}"}}
            self._changed()
            backoff = _BACKOFF_S[min(self._restarts, len(_BACKOFF_S) - 1)]
            self._restarts += 1
            await asyncio.sleep(backoff)
        self._changed()

    async def _probe(self) -> None:
        """Startup first; then readiness, and liveness, whose failure ends the process."""
        if probe := self.spec.get("startupProbe"):
            passed = asyncio.Event()

            def first(good: bool, why: str) -> None:
                if good:
                    passed.set()
                else:
                    self.kill(f"startup probe: {why}")

            asking = asyncio.create_task(probes.watch(self._target, probe, first, eager=True))
            try:
                await passed.wait()
            finally:
                asking.cancel()
        self._started = True
        async with asyncio.TaskGroup() as tasks:
            if probe := self.spec.get("readinessProbe"):
                tasks.create_task(probes.watch(self._target, probe, self._set_ready, eager=True))
            else:
                self._set_ready(True, "")
            if probe := self.spec.get("livenessProbe"):
                tasks.create_task(probes.watch(self._target, probe, self._alive))

    def _set_ready(self, ready: bool, why: str) -> None:
        if ready != self.ready:
            self.ready = ready
            self._changed()

    def _alive(self, good: bool, why: str) -> None:
        if not good and not self._stop.is_set():
            self.kill(f"liveness probe: {why}")

    def kill(self, why: str) -> None:
        if self.pid:
            with self._log.open("a") as log:
                log.write(f"kubelet stand-in: killed, {why}\n")
            self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def stop(self) -> None:
        """The preStop hook, then SIGTERM, then the end; whoever asks for it sees to `kill` when the grace is over."""
        self._stop.set()
        hook = (self.spec.get("lifecycle") or {}).get("preStop") or {}
        if action := hook.get("httpGet"):
            # As the kubelet: however the hook ends, the termination goes on.
            with contextlib.suppress(aiohttp.ClientError, OSError):
                await self._target.http(action)
        if self._process is not None and self.pid:
            self._process.terminate()
            await self._process.wait()

    def status(self) -> Object:
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": self.spec["image"],
            "containerID": f"process://{self.pid}" if self.pid else "",
            "ready": self.ready,
            "started": self._started,
            "restartCount": self._restarts,
            "state": self._state,
            "lastState": self._last,
        }
