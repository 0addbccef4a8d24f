"""What a decode engine has to do, told to the home of its group now and then: tokens generated, how full it is, and
prompt tokens that prefill instances were too busy to be sent. An engine at rest says nothing.

The home makes of it how many instances of each role there should be; nothing depends on a report that is lost.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, NamedTuple, Protocol

SAMPLE_S: Final = 0.5
REPORT_S: Final = 2.0


class Load(NamedTuple):
    """Since the last one."""

    generated: int
    span_s: float
    occupancy: float  # of KV blocks or running requests, whichever is fuller, 0 to 1
    unsent: int


class Telling(Protocol):
    async def report(self, load: Load) -> None: ...


class LoadReports:
    """`client` is the engine's (inproc.py)."""

    def __init__(self, client: Any, home: Telling) -> None:
        self._client = client
        self._home = home
        self._unsent = 0
        self._generated = 0

    def unsent(self, tokens: int) -> None:
        """A prompt is computed here because prefill instances have too much to do."""
        self._unsent += tokens

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        since, samples = loop.time(), list[float]()
        while True:
            await asyncio.sleep(SAMPLE_S)
            samples.append(await self._occupancy())
            span_s = loop.time() - since
            if span_s >= REPORT_S:
                generated = self._client.generated
                load = Load(generated - self._generated, span_s, sum(samples) / len(samples), self._unsent)
                if load.generated or load.unsent:
                    await self._home.report(load)
                since, samples, self._generated, self._unsent = loop.time(), [], generated, 0

    async def _occupancy(self) -> float:
        if self._client.at_rest or self._client.resources.engine_dead:
            return 0.0
        return float(await self._client.call(occupancy))


def occupancy(core: Any) -> float:
    """Runs on the engine's thread."""
    scheduler = core.scheduler
    seats = len(scheduler.running) / max(1, scheduler.max_num_running_reqs)
    return float(min(1.0, max(scheduler.kv_cache_manager.usage, seats)))
