"""What a zygote keeps ready besides itself: one process forked ahead, which becomes the next instance if it can.

It listens beside the zygote's socket and is asked there in the zygote's own words: {"pid"} says that it has become
the instance, an {"error"} that it is for others; then the zygote forks as ever, and this one is ended before, because
there is room for one. The next is forked when no instance is left. One that can't be started is not tried for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from typing import Any

#: In a row, without having been ready.
MOST_FAILURES = 3
_ANSWER_S = 10.0
_PERMANENT = 2  # exit code


class Kept:
    """`pid` 0: there is none now."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.pid = 0
        self.reason = ""  # why there won't be another
        self.refusal = ""  # why it has not become the instance that was asked for last
        self._failures = 0

    @property
    def wanted(self) -> bool:
        return not self.pid and not self.reason

    def forked(self, pid: int) -> None:
        self.pid = pid

    def ready(self) -> bool:
        """Whether it could be had at once."""
        answer = self._ask({"ping": True}) if self.pid else {}
        if answer.get("ready"):
            self._failures = 0
        return bool(answer.get("ready"))

    def become(self, request: dict[str, Any]) -> int:
        """Its pid when it has become the instance; 0 when it hasn't: then it has been told to end."""
        self.refusal = ""
        if not self.pid:
            self.refusal = self.reason or "the next one was not there yet"
            return 0
        pid, answer = self.pid, self._ask(request)
        if answer.get("pid") == pid:
            self.pid = 0
            return pid
        self.refusal = _said(answer)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # it serves nobody, and its memory is needed
        self.pid = 0
        return 0

    def ended(self, pid: int, code: int) -> None:
        """A child of the zygote has."""
        if pid != self.pid:
            return
        self.pid = 0
        self._failures += 1
        if code == _PERMANENT or self._failures >= MOST_FAILURES:
            self.reason = f"it ended with exit code {code} before it was ready: see the log"

    def end(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ANSWER_S)
            try:
                connection.connect(self.path)
                connection.sendall(json.dumps(request).encode() + b"\n")
                with connection.makefile("rb") as file:
                    answer = json.loads(file.readline() or b"{}")
            except (OSError, ValueError):
                return {}
        return answer if isinstance(answer, dict) else {}


def _said(answer: dict[str, Any]) -> str:
    if not answer.get("error"):
        return "it did not answer"
    field = f"{answer['field']}: " if answer.get("field") else ""
    return f"{field}{answer['error']}"
