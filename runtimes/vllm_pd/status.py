"""What an instance tells its node agent about its own life: a status file, and one JSON line per change.

The file is replaced atomically, so a reader sees a whole status or the one before. The socket only saves the
agent from polling: not reaching it is not an error. Beside the status, `pulse` is touched as long as the process is
well; when the instance ends it leaves its requests there, so that they can be explained afterwards. Never decides
anything about the instance's life.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

Phase = Literal["importing", "loading", "ready", "draining", "failed"]


class StartRefused(Exception):
    """The start can't succeed: what is wrong, in which argument or file, and what to do about it.

    `permanent`: the same start would fail again anywhere (exit code 2); else it is this node's trouble (1).
    """

    def __init__(self, error: str, field: str, remedy: str, *, permanent: bool = True) -> None:
        super().__init__(error)
        self.error = error
        self.field = field
        self.remedy = remedy
        self.permanent = permanent

    @property
    def line(self) -> str:
        return " ".join(f"{self.field}: {self.error}; {self.remedy}".split())


class Status:
    """The instance's status; every change is published at once."""

    def __init__(
        self, folder: Path | None, ready_socket: str = "", clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._ready_socket = ready_socket
        self._clock = clock
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._port = 0
        self._phase: Phase = "importing"
        self._events: list[dict[str, Any]] = []
        self._error: dict[str, str] | None = None
        self._kv: dict[str, Any] | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Status:
        folder = environ.get("GALAXY_INSTANCE_DIR", "")
        return cls(Path(folder) if folder else None, environ.get("GALAXY_READY_SOCKET", ""))

    @property
    def phase(self) -> Phase:
        return self._phase

    def enter(self, phase: Phase) -> None:
        self._phase = phase
        self._publish()

    def listening(self, port: int) -> None:
        self._port = port
        self.event("listening")

    def event(self, name: str) -> None:
        self._events.append({"name": name, "at": self._clock()})
        self._publish()

    def tell_kv(self, facts: dict[str, Any]) -> None:
        """Its channels to the other role's instances: what stands, and why nothing does."""
        if facts != self._kv:
            self._kv = facts
            self._publish()

    def beat(self) -> None:
        """The event loop turns: without this for long, the node agent takes the process for hung."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / "pulse").touch()

    def fail(self, refusal: StartRefused) -> None:
        self._phase = "failed"
        self._error = {"error": refusal.error, "field": refusal.field, "remedy": refusal.remedy}
        self._publish()

    def facts(self) -> dict[str, Any]:
        return {
            "phase": self._phase,
            "pid": os.getpid(),
            "port": self._port,
            "events": self._events,
            "error": self._error,
            "kv": self._kv,
        }

    def leave_behind(self, requests: dict[str, Any]) -> None:
        """Last words: what happened to each request, by its id."""
        self._write("requests.json", json.dumps(requests))

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _publish(self) -> None:
        with self._lock:  # the engine's thread has news too
            self._publish_one()

    def _publish_one(self) -> None:
        text = json.dumps(self.facts())
        self._write("status.json", text)
        if self._ready_socket:
            try:
                if self._connection is None:
                    self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                    self._connection.settimeout(0.5)
                    self._connection.connect(self._ready_socket)
                self._connection.sendall(text.encode() + b"\n")
            except OSError:
                if self._connection is not None:
                    self._connection.close()
                self._connection = None

    def _write(self, name: str, text: str) -> None:
        if self._folder is None:
            return
        temporary = self._folder / f".{name}.{os.getpid()}"
        with contextlib.suppress(OSError):  # the folder may be gone when the agent has forgotten us
            temporary.write_text(text)
            temporary.replace(self._folder / name)
