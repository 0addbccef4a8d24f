"""A real server for the Redis protocol: started, stopped, paused, emptied; ended with its pid only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from kserve_ext.rpc.ports import free_port
from tools import redis_server
from tools.setup.layout import Layout
from tools.setup.steps import SetupError

WITHIN_S = 30.0


class RedisServer:
    """Keeps nothing on disk unless `kept`: then an append-only file, written through at every command."""

    def __init__(self, folder: Path, *options: str, kept: bool = False) -> None:
        try:
            self._server = redis_server.bring(Layout.of_user())
        except SetupError as error:
            pytest.skip(f"no redis-server: {error}")
        self.folder = folder
        self.port = free_port()
        self.options = [*(("--appendonly", "yes", "--appendfsync", "always") if kept else ()), *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Returns when it answers. Which program the file is goes by argv[0]."""
        argv = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        argv += ["--dir", str(self.folder), *self.options]
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                argv, executable=self._server.program, env=self._server.environment(), stdout=log, stderr=log
            )
        until = time.monotonic() + WITHIN_S
        while True:
            with contextlib.suppress(OSError):
                if b"PONG" in self.command("PING") or b"NOAUTH" in self.command("PING"):
                    return
            if self._process.poll() is not None or time.monotonic() > until:
                raise AssertionError((self.folder / "redis.log").read_text())
            time.sleep(0.02)

    def command(self, *words: str) -> bytes:
        """The raw answer, as much of it as comes at once."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=WITHIN_S) as connection:
            connection.sendall(" ".join(words).encode() + b"\r\n")
            return connection.recv(65536)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def pause(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)
