"""What a process did, line by line, for whoever checks a run afterwards: GALAXY_HISTORY=FOLDER has it written.

One file a process, FOLDER/NAME.PID.jsonl, a JSON object a line. A line is in the kernel's hands before the next thing
is done, so a process that is killed leaves all that it did. `t` is CLOCK_MONOTONIC, which is one for all processes
of a machine, whatever their wall clocks say and in whichever network namespace they are. Without the variable `on`
is False and nothing is written; callers ask it before they put facts together. docs/chaos.md lists the words.
"""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic

import msgspec

VARIABLE = "GALAXY_HISTORY"


class History:
    """Of the process, or in a test the part, called `name`."""

    __slots__ = ("_encode", "_file", "_folder", "name", "on")

    def __init__(self, name: str, folder: str | None = None) -> None:
        self.name = name
        self._folder = os.environ.get(VARIABLE, "") if folder is None else folder
        self.on = bool(self._folder)
        self._file = -1
        self._encode = msgspec.json.Encoder().encode

    def say(self, what: str, **facts: object) -> None:
        """One event: a word, and what it is about. A full disk ends the history, never the process."""
        if not self.on:
            return
        line = self._encode({"t": monotonic(), "by": self.name, "pid": os.getpid(), "what": what, **facts})
        try:
            if self._file < 0:
                folder = Path(self._folder)
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{self.name}.{os.getpid()}.jsonl"
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.write(self._file, line + b"\n")
        except OSError:
            self.on = False
