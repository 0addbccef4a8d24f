"""Sees every instance come and go, whatever anybody says of it: by the file it begins with, and by its pidfd."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from kserve_ext.rpc.history import History
from tests.chaos.history import Event, event

LOOK_S = 0.05


class Observer:
    def __init__(self, history: Path, said: History) -> None:
        self.history, self.said = history, said
        #: that live, by pid, with how they began
        self.living: dict[int, Event] = {}
        self._seen: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        for entry in os.scandir(self.history):
            if not entry.name.startswith("instance.") or entry.name in self._seen:
                continue
            with open(entry.path, "rb") as file:
                line = file.readline()
            if line.endswith(b"\n"):
                self._seen.add(entry.name)
                self._follow(event(line))

    def _follow(self, began: Event) -> None:
        self.living[began.pid] = began
        try:
            handle = os.pidfd_open(began.pid)
        except ProcessLookupError:
            self._gone(began.pid)
            return
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(handle)
            os.close(handle)
            self._gone(began.pid)

        loop.add_reader(handle, ended)

    def _gone(self, pid: int) -> None:
        began = self.living.pop(pid)
        self.said.say("gone", instance=began["instance"], of=pid)
