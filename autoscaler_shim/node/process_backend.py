"""The process backend: an instance is a process of this machine, forked from a zygote or executed.

It gets a session of its own, a folder, a log file and a port, and no pipe of the agent's: it lives on when the
agent dies. What is needed to find it again is on disk before it exists (`spec.msgpack`) and right after
(`pid.json`). Whether it may run is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

import autoscaler_shim
from autoscaler_shim.node.folders import NodeFolder, remove, write_bytes, write_json
from autoscaler_shim.node.processes import Process, identify, living_in
from autoscaler_shim.node.zygotes import NoZygote, ZygotePool
from kserve_ext.core.node.command_line import CommandLine, on_node
from kserve_ext.core.node.facts import Order

log = logging.getLogger(__name__)

SLEEP_REFUSED = (
    "instances of the process backend can't sleep: an engine that gives its memory back and keeps its weights "
    "needs a GPU (vLLM's sleep mode); stop it instead, its zygote starts it again"
)


class LaunchFailed(Exception):
    def __init__(self, reason: str, *, permanent: bool) -> None:
        super().__init__(reason)
        self.permanent = permanent


class Spec(msgspec.Struct, frozen=True):
    """What is on disk of an instance, for people (spec.json) and for the next agent (spec.msgpack)."""

    order: Order
    devices: tuple[int, ...]
    model_folder: str
    host: str
    port: int
    generation: int


class Launched(NamedTuple):
    process: Process
    child: subprocess.Popen[bytes] | None
    spec: Spec
    how: str
    #: keeps the port from others until the server has it: close it then
    port: socket.socket


class ProcessBackend:
    def __init__(self, folder: NodeFolder, zygotes: ZygotePool, host: str, key_file: Path) -> None:
        self.folder, self.zygotes, self.host, self.key_file = folder, zygotes, host, key_file

    def announce(self, order: Order) -> None:
        """Before it waits for its model or its zygote: should this agent end, the next one tells the home."""
        folder = self.folder.instance(order.instance)
        remove(folder)
        folder.mkdir(parents=True)
        spec = Spec(order, (), "", self.host, 0, 0)
        write_bytes(folder / "spec.msgpack", msgspec.msgpack.encode(spec))

    async def wait(self, order: Order) -> None:
        """Until there is a zygote to fork from, or none to wait for. May be cancelled: nothing exists yet."""
        if order.revision.command.zygote:
            with contextlib.suppress(NoZygote):  # launch says what this means
                await self.zygotes.wait(order.revision.command.zygote)

    async def launch(self, order: Order, devices: tuple[int, ...], model_folder: str) -> Launched:
        """Starts the process. Raises LaunchFailed."""
        held_port = _choose_port(self.host)
        try:
            return await self._launch(order, devices, model_folder, held_port)
        except BaseException:
            held_port.close()
            raise

    async def _launch(
        self, order: Order, devices: tuple[int, ...], model_folder: str, held: socket.socket
    ) -> Launched:
        command = order.revision.command
        folder = self.folder.instance(order.instance)
        remove(folder)
        folder.mkdir(parents=True)
        port: int = held.getsockname()[1]
        line = on_node(command, order.revision.model.mount, model_folder, port)
        spec = Spec(order, devices, model_folder, self.host, port, time.time_ns())
        env = {**self._environment(spec), **line.env, **self._visibility(spec, line)}
        write_bytes(folder / "spec.msgpack", msgspec.msgpack.encode(spec))
        write_bytes(folder / "spec.json", msgspec.json.format(msgspec.json.encode(spec)))
        if not command.zygote:
            held.close()  # a foreign server need not be able to share it
            return self._execute(spec, line, env, folder, held, "")
        try:
            await self.zygotes.wait(command.zygote)
            return await self._fork(spec, line, env, folder, held)
        except NoZygote as error:
            log.warning("%s is executed, not forked: %s", order.instance, error)
            return self._execute(spec, line, env, folder, held, str(error))
        except (OSError, TimeoutError, ValueError) as error:
            for stray in living_in(folder):  # it may have been forked, and the answer lost
                stray.kill_group()
            reason = f"the zygote of {command.zygote} did not answer: {type(error).__name__} {error}"
            raise LaunchFailed(reason, permanent=False) from error

    async def _fork(
        self, spec: Spec, line: CommandLine, env: dict[str, str], folder: Path, held: socket.socket
    ) -> Launched:
        log_file = str(folder / "log")
        module = spec.order.revision.command.zygote
        request = {
            "argv": list(line.argv),
            "env": env,
            "cwd": str(folder),
            "stdout": log_file,
            "stderr": log_file,
            "instance_dir": str(folder),
        }
        pid = await self.zygotes.fork(module, request)
        process = identify(pid) or Process(pid, 0)
        how = f"forked from the zygote of {module} as {pid}"
        _write_pid(folder, process, how)
        return Launched(process, None, spec, how, held)

    def _execute(
        self,
        spec: Spec,
        line: CommandLine,
        env: dict[str, str],
        folder: Path,
        held: socket.socket,
        why: str,
    ) -> Launched:
        program = shutil.which(line.argv[0], path=env.get("PATH")) if line.argv else None
        if program is None:
            what = line.argv[0] if line.argv else ""
            raise LaunchFailed(
                f"command: there is no program {what!r} on this node; install it, or correct the runtime's command",
                permanent=True,
            )
        with (folder / "log").open("ab") as output:
            try:
                child = subprocess.Popen(
                    [program, *line.argv[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=env,
                    cwd=folder,
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                raise LaunchFailed(
                    f"command: {program} can't be executed: {error}", permanent=True
                ) from error
        process = identify(child.pid) or Process(child.pid, 0)
        how = f"executed as {child.pid}" + (f" ({why})" if why else "")
        _write_pid(folder, process, how)
        return Launched(process, child, spec, how, held)

    def _environment(self, spec: Spec) -> dict[str, str]:
        """The agent's own environment and what every instance is told; the revision's own comes on top."""
        order = spec.order
        return {
            **base_environment(),
            "GALAXY_INSTANCE_DIR": str(self.folder.instance(order.instance)),
            "GALAXY_INSTANCE_ID": order.instance,
            "GALAXY_GENERATION": str(spec.generation),
            "GALAXY_ROLE": order.revision.role,
            "GALAXY_GROUP": order.revision.home_key,
            "GALAXY_REVISION": order.revision.key,
            "GALAXY_NODE_SOCKET": str(self.folder.agent_socket),
            "GALAXY_CLUSTER_KEY_FILE": str(self.key_file),
            "GALAXY_READY_SOCKET": str(self.folder.ready_socket),
            "GALAXY_DRAIN_SECONDS": str(order.revision.command.drain_s),
            "GALAXY_CONCURRENCY": str(order.revision.concurrency),
        }

    def _visibility(self, spec: Spec, line: CommandLine) -> dict[str, str]:
        """An instance sees the devices it was given and no others, and takes no more threads than its CPUs."""
        env = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, spec.devices))}
        cpus = spec.order.revision.needs.cpu_milli
        if cpus and "OMP_NUM_THREADS" not in line.env:
            env["OMP_NUM_THREADS"] = str(max(1, cpus // 1000))
        return env


def base_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What zygotes and instances inherit: this process's, able to find this interpreter and these packages."""
    env = {name: value for name, value in environ.items() if not name.startswith("GALAXY_")}
    own = os.path.dirname(sys.executable)
    path = env.get("PATH", os.defpath).split(os.pathsep)
    env["PATH"] = os.pathsep.join([own, *[p for p in path if p != own]])
    root = str(Path(autoscaler_shim.__file__).parent.parent)
    roots = [p for p in env.get("PYTHONPATH", "").split(os.pathsep) if p and p != root]
    env["PYTHONPATH"] = os.pathsep.join([root, *roots])
    return env


def _choose_port(host: str) -> socket.socket:
    """Bound to a free port, which a server that allows reuse may bind beside us, and nobody else is given."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((host, 0))
    return held


def _write_pid(folder: Path, process: Process, how: str) -> None:
    write_json(
        folder / "pid.json", {"pid": process.pid, "ticks": process.ticks, "how": how, "at": time.time()}
    )
