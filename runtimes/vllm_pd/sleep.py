"""Sleep and wake of this instance's engine (S2): its weights go to host memory, its KV cache goes away, and back.

Its channels come first and last. Memory that the device takes back must not be registered with a NIC or open in
another process any more, so all channels end before the engine sleeps; it may lie elsewhere afterwards, so they are
made anew in a new generation, and those of before are void: a peer that still knows the old one is refused. Who
sleeps and wakes when is for core/standby/sleeping.py. vLLM's CPU backend can't sleep; there it is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol

from runtimes.vllm_pd.status import StartRefused

State = Literal["awake", "falling", "asleep", "waking", "failed"]
#: Weights to host memory, KV cache dropped. (2 drops the weights as well.)
LEVEL = 1


class SleepRefused(StartRefused):
    """Nothing has changed."""

    def __init__(self, error: str, field: str, remedy: str, *, permanent: bool = False) -> None:
        super().__init__(error, field, remedy, permanent=permanent)


class Engine(Protocol):
    """As vLLM's asynchronous engine is."""

    async def sleep(self, level: int) -> None: ...

    async def wake_up(self) -> bool | None: ...

    def get_num_unfinished_requests(self) -> int: ...


class Channels(Protocol):
    """What other instances have of this one's memory."""

    async def leave(self) -> None:
        """All of them end: when it returns nothing of the KV cache is registered anywhere."""

    async def join(self, generation: int) -> None:
        """The engine's memory is there again: it is registered, and peers of this generation may come."""


class Sleeper:
    """`why_not`: of an engine that can't sleep, else None. `close` and `open`: for requests."""

    def __init__(
        self,
        engine: Engine,
        channels: Channels,
        why_not: SleepRefused | None,
        close: Callable[[], None],
        open_: Callable[[], None],
    ) -> None:
        self.state: State = "awake"
        self.generation = 0
        self._engine = engine
        self._channels = channels
        self._why_not = why_not
        self._close = close
        self._open = open_

    async def sleep(self) -> None:
        """Raises SleepRefused; any other error has left the engine in no known state."""
        if self._why_not is not None:
            raise self._why_not
        if self.state == "asleep":
            return
        self._must_be("awake")
        self.state = "falling"
        self._close()  # before they are counted
        if count := self._engine.get_num_unfinished_requests():
            self.state = "awake"
            self._open()
            raise SleepRefused(f"{count} requests are open", "requests", "drain the instance first")
        await self._surely(self._channels.leave())
        await self._surely(self._engine.sleep(LEVEL))
        self.state = "asleep"

    async def wake(self, generation: int) -> None:
        """`generation`: of its channels from now on; above all before. Raises likewise."""
        if self._why_not is not None:
            raise self._why_not
        if self.state == "awake":
            return
        self._must_be("asleep")
        if generation <= self.generation:
            error = f"generation {generation} is not above {self.generation}, in which it was awake"
            raise SleepRefused(error, "generation", "give a larger one")
        self.state, self.generation = "waking", generation
        await self._surely(self._engine.wake_up())
        await self._surely(self._channels.join(generation))
        self.state = "awake"
        self._open()

    def _must_be(self, state: State) -> None:
        if self.state != state:
            remedy = "replace its process" if self.state == "failed" else "wait for that, and ask again"
            raise SleepRefused(f"the engine is {self.state}", "engine", remedy)

    async def _surely(self, step: Awaitable[Any]) -> None:
        try:
            await step
        except BaseException:
            self.state = "failed"
            raise


def why_not(on_cpu: bool, sleep_mode: bool) -> SleepRefused | None:
    """Of this machine and these arguments."""
    if on_cpu:
        error = "vLLM's CPU backend can't sleep: there is no device whose memory it could give back"
        return SleepRefused(
            error, "sleep", "stop the instance; a zygote or a shaped engine starts it again", permanent=True
        )
    if not sleep_mode:
        error = "the engine was not started to sleep"
        return SleepRefused(error, "--enable-sleep-mode", "start it with this argument", permanent=True)
    return None
