"""One server whose engine is a file in memory and whose device is a lock: who is awake has it, alone in its pod.

--model FILE           what it answers from; a file that is not there is refused as our runtimes refuse
--served-model-name N  said in answers
--device FOLDER        where the device of its pod is: a file by the pod's uid, locked by whoever has memory of it
--gpu FOLDER           whose memory it needs (tests/support/gpu.py): awake --awake-mib, asleep --kept-mib, and before
                       it loads --gpu-memory-utilization of the whole free, as vLLM does
--enable-sleep-mode    POST /sleep, POST /wake_up and GET /is_sleeping, as vLLM's in its development mode
--control              orders come over control.sock instead, to the code of runtimes/vllm_pd that obeys them there

What it does goes into FILE.log, a word a line: loaded, leave, sleep, wake, join N. Files beside FILE break it, for as
long as they are there: FILE.sleep-fails, FILE.wake-fails, FILE.wake-hangs, FILE.load-fails, and FILE.wake-grows with
how many MiB of the GPU a wake takes. /exit ends the process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import signal
from pathlib import Path
from typing import Any

from runtimes.vllm_pd.control import Control
from runtimes.vllm_pd.sleep import Sleeper
from runtimes.vllm_pd.status import StartRefused, Status
from tests.support.gpu import Gpu


class Device:
    """Of the pod. Memory of it is not waited for: who finds it taken fails, as on a GPU."""

    def __init__(self, folder: str) -> None:
        self._path = (
            os.path.join(folder, f"device-{os.environ.get('POD_UID') or os.getpid()}") if folder else ""
        )
        self._file = -1

    def take(self) -> None:
        """Raises BlockingIOError."""
        if self._path:
            file = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                raise
            self._file = file

    def give(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Engine:
    """As vLLM's is for runtimes/vllm_pd/sleep.py; its channels are words in a file."""

    def __init__(self, model: Path, device: Device, gpu: Gpu, awake_mib: int, kept_mib: int) -> None:
        self._model = model
        self._device = device
        self._gpu, self._awake_mib, self._kept_mib = gpu, awake_mib, kept_mib
        self.asleep = False
        self.generation = int(os.environ.get("GALAXY_GENERATION") or 0)
        self.open = 0
        device.take()
        gpu.hold(awake_mib)
        self.weights = model.read_text()
        self.log("loaded")

    def log(self, word: str) -> None:
        with open(f"{self._model}.log", "a") as file:
            file.write(word + "\n")

    def broken(self, how: str) -> bool:
        return os.path.exists(f"{self._model}.{how}")

    async def sleep(self, level: int) -> None:
        if self.broken("sleep-fails"):
            raise RuntimeError("the allocator refuses")
        self._device.give()
        self._gpu.hold(self._kept_mib)
        self.asleep = True
        self.log("sleep")

    async def wake_up(self) -> bool:
        while self.broken("wake-hangs"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if self.broken("wake-fails"):
            raise RuntimeError("the allocator refuses to map")
        self._gpu.hold(self._needs())
        self._device.take()
        self.asleep = False
        self.log("wake")
        return True

    def _needs(self) -> int:
        grown = Path(f"{self._model}.wake-grows")
        return int(grown.read_text()) if grown.exists() else self._awake_mib

    def get_num_unfinished_requests(self) -> int:
        return self.open

    async def leave(self) -> None:
        self.log("leave")

    async def join(self, generation: int) -> None:
        if generation <= self.generation:
            raise RuntimeError(f"generation {generation} is not above {self.generation}")
        self.generation = generation
        self.log(f"join {generation}")


class Server:
    def __init__(self, engine: Engine, name: str, sleeps: bool) -> None:
        self._engine = engine
        self._name = name
        self._sleeps = sleeps
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
                status, said = await self._answer(method, target.partition("?")[0])
                body = json.dumps(said).encode()
                fields = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                writer.write(f"HTTP/1.1 {status} X\r\n{fields}\r\n".encode() + body)
                await writer.drain()
        writer.close()

    async def _answer(self, method: str, path: str) -> tuple[int, dict[str, Any]]:
        engine = self._engine
        if self._sleeps and (method, path) in (("POST", "/sleep"), ("POST", "/wake_up")):
            try:
                await (engine.sleep(1) if path == "/sleep" else engine.wake_up())
            except (RuntimeError, BlockingIOError, MemoryError) as error:
                return 500, {"error": str(error)}
            return 200, {"status": "sleeping" if engine.asleep else "awake"}
        if self._sleeps and path == "/is_sleeping":
            return 200, {"is_sleeping": engine.asleep}
        if path == "/exit":
            os._exit(3)
        if engine.asleep:
            return 503, {"error": "this engine sleeps"}
        return 200, {
            "model": engine.weights,
            "name": self._name,
            "pid": os.getpid(),
            "generation": engine.generation,
        }


async def _run(args: argparse.Namespace, engine: Engine, status: Status) -> int:
    server = Server(engine, args.served_model_name, args.enable_sleep_mode and not args.control)
    listener = await asyncio.start_server(server.serve, args.host, args.port)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.ended.set)
    control = None
    folder = os.environ.get("GALAXY_INSTANCE_DIR")
    if args.control and folder:
        sleeper = Sleeper(engine, engine, None, lambda: None, lambda: None)
        control = Control(sleeper, lambda error: server.ended.set())
        await control.listen(Path(folder))
    status.event("ready")
    status.enter("ready")
    await server.ended.wait()
    if control is not None:
        control.close()
    listener.close()
    return 0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--served-model-name", default="")
    parser.add_argument("--device", default="")
    parser.add_argument("--gpu", default="")
    parser.add_argument("--awake-mib", type=int, default=0)
    parser.add_argument("--kept-mib", type=int, default=0)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.92)
    parser.add_argument("--enable-sleep-mode", action="store_true")
    parser.add_argument("--control", action="store_true")
    args = parser.parse_args(argv)
    status = Status.from_environment()
    status.enter("loading")
    if os.path.exists(f"{args.model}.load-fails"):
        status.fail(StartRefused("it is broken", "--model", "mend it", permanent=False))
        return 1
    gpu = Gpu(args.gpu)
    gpu_wanted, gpu_free = args.gpu_memory_utilization * gpu.total_mib, gpu.free_mib - args.kept_mib
    if gpu_free < gpu_wanted:
        error = (
            f"Free memory on device ({gpu_free}) is less than desired GPU memory utilization ({gpu_wanted})"
        )
        status.fail(StartRefused(error, "--gpu-memory-utilization", "lower it", permanent=False))
        return 1
    try:
        engine = Engine(Path(args.model), Device(args.device), gpu, args.awake_mib, args.kept_mib)
    except OSError as error:
        status.fail(StartRefused(str(error), "--model", "give a file, on a free device"))
        return 2
    return asyncio.run(_run(args, engine, status))
