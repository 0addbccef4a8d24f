"""A part that an earlier supervisor started, in the hands of its successor: asked and ended by pid.

Has what the supervisor uses of subprocess.Popen. A pid counts only with its start time, so that a reused one is never
signalled; the exit code of another's child can't be known.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import Final

from kserve_ext.cli.embedded.folder import runs

LOOK_EVERY_S: Final = 0.02
#: Given as exit code; no process ends with it.
UNKNOWN: Final = 256


class Adopted:
    """Of one process that is not our child."""

    def __init__(self, pid: int, started: int) -> None:
        self.pid = pid
        self.started = started

    def poll(self) -> int | None:
        return None if runs(self.pid, self.started) else UNKNOWN

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while runs(self.pid, self.started):
            if until is not None and time.monotonic() >= until:
                raise subprocess.TimeoutExpired(f"pid {self.pid}", timeout or 0.0)
            time.sleep(LOOK_EVERY_S)
        return UNKNOWN

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if runs(self.pid, self.started):
                os.kill(self.pid, number)
