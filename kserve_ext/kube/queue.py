"""A work queue of reconciliations: a key is at most once in line and once at work, failures are tried again later.

Like client-go's rate-limited queue: what is added while its key is at work runs once more afterwards; a failure waits
twice as long each time, up to MOST_S, until a run succeeds. It decides only when to run, never what to do. An
exception is logged; a conflict or an absent server without a traceback, since both are everyday.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from kserve_ext.core.backoff import pause_s
from kserve_ext.core.histogram import Histogram
from kserve_ext.kube.errors import Conflict, KubeError, Unavailable

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

LEAST_S = 0.01
MOST_S = 60.0
RUN_TIMEOUT_S = 30.0  # as Knative's reconcilers


@dataclass(slots=True)
class Counters:
    """What has happened since the start; for metrics."""

    added: int = 0  # keys put in line, duplicates not counted
    runs: int = 0
    failures: int = 0
    waited: Histogram = field(default_factory=Histogram)  # in line, since they were added
    ran: Histogram = field(default_factory=Histogram)


class WorkQueue(Generic[K]):
    """reconcile(key) returns after how many seconds it wants to run again, or None."""

    def __init__(
        self,
        reconcile: Callable[[K], Awaitable[float | None]],
        workers: int = 8,
        *,
        name: str = "",
        timeout_s: float = RUN_TIMEOUT_S,
    ) -> None:
        self.reconcile = reconcile
        self.name = name or getattr(reconcile, "__qualname__", "queue")
        self.timeout_s = timeout_s
        self.counters = Counters()
        self._workers = workers
        self._tasks: set[asyncio.Task[None]] = set()
        #: Keys in line and since when; each is in _line exactly once.
        self._since: dict[K, float] = {}
        self._line: deque[K] = deque()
        #: And since when.
        self._at_work: dict[K, float] = {}
        #: Keys at work that were added meanwhile: they go in line when they are done.
        self._again: set[K] = set()
        #: Keys that come later, at most one timer each: the earliest that was asked for.
        self._later: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._running = False

    @property
    def depth(self) -> int:
        return len(self._line)

    def running_s(self) -> list[float]:
        """How long each run that is under way has taken so far."""
        now = self._now()
        return [now - begun for begun in self._at_work.values()]

    def add(self, key: K) -> None:
        """As soon as possible. Before start() keys gather."""
        if key in self._at_work:
            self._again.add(key)
        elif key not in self._since:
            self._since[key] = self._now()
            self._line.append(key)
            self.counters.added += 1
            self._idle.clear()
            self._work()

    def add_after(self, key: K, seconds: float) -> None:
        """Later; of several such calls the earliest counts. A run meanwhile doesn't call it off."""
        if seconds <= 0:
            self.add(key)
            return
        waiting = self._later.get(key)
        due = self._now() + seconds
        if waiting is not None:
            if waiting.when() <= due:
                return
            waiting.cancel()
        self._later[key] = asyncio.get_running_loop().call_at(due, self._due, key)

    def forget(self, key: K) -> None:
        """The object is gone: nothing of it is kept waiting. A run that is under way goes on."""
        if (waiting := self._later.pop(key, None)) is not None:
            waiting.cancel()
        self._failures.pop(key, None)

    def start(self) -> None:
        self._running = True
        self._work()

    async def stop(self) -> None:
        """Ends runs under way by cancelling them; what is in line stays there."""
        self._running = False
        for timer in self._later.values():
            timer.cancel()
        self._later.clear()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def idle(self) -> None:
        """Waits until nothing is in line or at work (what comes later doesn't count)."""
        await self._idle.wait()

    # --- inside

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _due(self, key: K) -> None:
        del self._later[key]
        self.add(key)

    def _work(self) -> None:
        """A task is made for each run, `workers` at a time: idle workers cost nothing."""
        starting = len(self._tasks) - len(self._at_work)
        while self._running and starting < len(self._line) and len(self._tasks) < self._workers:
            task = asyncio.get_running_loop().create_task(self._run_next(), name=self.name)
            self._tasks.add(task)
            task.add_done_callback(self._ended)
            starting += 1

    async def _run_next(self) -> None:
        """Takes its key only now, so that what is added in the turn of the loop that made this task is one run."""
        key = self._line.popleft()
        begun = self._now()
        self.counters.waited.observe(begun - self._since.pop(key))
        self.counters.runs += 1
        self._at_work[key] = begun
        try:
            await self._run(key)
        finally:
            del self._at_work[key]
            self.counters.ran.observe(self._now() - begun)
            if key in self._again:
                self._again.discard(key)
                self.add(key)

    async def _run(self, key: K) -> None:
        try:
            async with asyncio.timeout(self.timeout_s):
                again_s = await self.reconcile(key)
        except Exception as error:
            self.counters.failures += 1
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            pause = pause_s(failures, LEAST_S, MOST_S, random.random())
            if isinstance(error, KubeError):
                pause = max(pause, error.retry_after_s)
            self._complain(key, error, pause)
            self.add_after(key, pause)
        else:
            self._failures.pop(key, None)
            if again_s is not None:
                self.add_after(key, again_s)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._work()
        if not self._line and not self._tasks:
            self._idle.set()

    def _complain(self, key: K, error: Exception, pause: float) -> None:
        said = f"{self.name} {key}: failed, again in {pause:.2f} s"
        if isinstance(error, Conflict):
            log.debug("%s: %s", said, error)
        elif isinstance(error, (KubeError, TimeoutError)):
            level = logging.INFO if isinstance(error, Unavailable) else logging.WARNING
            log.log(level, "%s: %s", said, str(error) or "it took too long")
        else:
            log.error(said, exc_info=error)
