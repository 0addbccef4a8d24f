"""The front as the slot's child: started by argv, told what to do on a pair of sockets that it inherits."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import Callable

import msgspec

from autoscaler_shim.node.process_backend import base_environment
from autoscaler_shim.node.processes import Process, identify
from autoscaler_shim.node.watcher import Exit, Watcher
from kserve_ext.wire.slot_front import ToFront, ToSlot

log = logging.getLogger(__name__)

MODULE = "activator_replacement.queue"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ToSlot).decode


class Front:
    def __init__(
        self,
        host: str,
        quiet_s: float,
        watcher: Watcher,
        own: set[int],
        said: Callable[[ToSlot], None],
        died: Callable[[str], None],
    ) -> None:
        """`own`: pids that are waited for here."""
        self._arguments = ["--host", host, "--quiet-s", str(quiet_s)]
        self._watcher = watcher
        self._own = own
        self._said = said
        self._died = died
        self._process: Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            command = [sys.executable, "-m", MODULE, "--slot-fd", str(theirs.fileno()), *self._arguments]
            try:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    env=base_environment(),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                asyncio.get_running_loop().call_soon(self._died, f"the front can't begin ({error})")
                return
        self._own.add(child.pid)
        process = identify(child.pid) or Process(child.pid, 0)
        self._process = process
        listening = self._listening = asyncio.get_running_loop().create_task(self._listen(ours, process))

        def ended(exit: Exit) -> None:
            self._own.discard(child.pid)
            listening.cancel()
            if self._process == process:
                self._process = None
                how = f"signal {exit.signum}" if exit.signum else f"exit code {exit.code}"
                self._died(f"the front ended ({how})")

        self._watcher.watch(process, ended, child=child)

    def tell(self, message: ToFront) -> None:
        if self._writer is not None:
            self._writer.write(_encode(message) + b"\n")

    def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()

    async def _listen(self, ours: socket.socket, process: Process) -> None:
        reader, writer = await asyncio.open_connection(sock=ours)
        self._writer = writer
        try:
            while line := await reader.readline():
                if self._process == process:
                    self._said(_decode(line))
        except OSError as error:  # its end follows
            log.warning("the front can't be heard: %s", error)
        finally:
            if self._writer is writer:
                self._writer = None
            writer.close()
