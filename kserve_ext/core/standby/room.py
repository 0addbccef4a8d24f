"""Room on the GPU of a pod whose engines sleep: what each keeps in its sleep, what one that comes needs, who goes.

A sleeping engine gives back weights and KV cache and keeps the rest of its process (CUDA's context, what libraries
hold), some hundred MiB that the next one lacks. A wake needs what the last sleep has given back, as it was measured;
a start what vLLM asks for before it loads: its share of the whole GPU free, beside its own context. Where that does
not fit sleepers go, the one that was asked for longest ago first; where it wouldn't without any of them, none does.
Measures nothing: it is told what the GPU has and when. Of several GPUs it is told of the one with the least free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

#: Option of vLLM: the share of the GPU that an engine asks for when it starts, and what it is if nobody says.
SHARE: Final = "--gpu-memory-utilization"
DEFAULT_SHARE: Final = 0.92
#: CUDA's context of a process that starts, which vLLM counts as taken before it looks whether its share is free.
CONTEXT_MIB: Final = 640
#: How CUDA, torch and vLLM's allocator say that memory is short.
_SHORT: Final = ("out of memory", "outofmemory", "cuda_error_out_of_memory", "cudaerrormemoryallocation")


class Memory(NamedTuple):
    """Of a GPU, whoever has it."""

    total_mib: int
    free_mib: int


class Verdict(NamedTuple):
    """What is to be done before an engine comes; neither: it fits."""

    victim: str = ""  # the sleeper that goes first; ask again when it has gone
    why: str = ""  # there is no room even without any of them


class Room:
    """Knows nothing, and says that everything fits, until it is told of the GPU."""

    def __init__(self) -> None:
        self.memory: Memory | None = None
        #: Of each that has slept, as measured when it first did: whoever else has memory of the GPU may take some
        #: while an engine is awake, and to end a sleeper for what isn't its would be in vain.
        self.kept: dict[str, int] = {}
        #: What each that has slept has given back with it, and takes again when it wakes.
        self._gave: dict[str, int] = {}
        self._outside = 0  # taken by nobody of this pod, when its last engine began
        self._free_awake: int | None = None  # when the one that falls asleep was told to

    def measured(self, memory: Memory | None) -> None:
        """None: it can't be."""
        self.memory = memory

    # --- what engines do

    def starts(self) -> None:
        """One does, or a server: nothing of this pod is on the GPU but sleepers."""
        if self.memory is not None:
            self._outside = max(0, self._used(self.memory) - sum(self.kept.values()))

    def falls(self) -> None:
        """One is told to sleep."""
        self._free_awake = self.memory.free_mib if self.memory is not None else None

    def slept(self, name: str) -> None:
        if self.memory is None:
            return
        if name not in self.kept:
            self.kept[name] = max(0, self._used(self.memory) - self._outside - sum(self.kept.values()))
        if self._free_awake is not None:
            self._gave[name] = max(0, self.memory.free_mib - self._free_awake)

    def gone(self, name: str) -> None:
        """Its process, and with it what it kept."""
        self.kept.pop(name, None)
        self._gave.pop(name, None)

    # --- what fits

    def to_wake(self, name: str, sleepers: Iterable[str]) -> Verdict:
        """`sleepers`: those that may go for it, in this order. Of one that was never measured nothing is known."""
        return self._verdict(f"{name} wakes", self._gave.get(name, 0), "give it another GPU", sleepers)

    def to_start(self, name: str, share: float, sleepers: Iterable[str]) -> Verdict:
        """`share` of the GPU; 0: nobody knows, so it fits."""
        if not share or self.memory is None:
            return Verdict()
        need = math.ceil(self.memory.total_mib * share) + CONTEXT_MIB
        return self._verdict(f"{name} starts", need, f"lower its {SHARE} ({share:g})", sleepers)

    def story(self, name: str) -> str:
        """Of a sleeper that goes for one that comes: the numbers, while it is still there."""
        assert self.memory is not None
        total, free = self.memory
        return f"{free} of the GPU's {total} MiB were free, and it kept {self.kept.get(name, 0)}"

    def said(self, name: str) -> str:
        """Of one that has just fallen asleep."""
        if self.memory is None:
            return "what it keeps of the GPU isn't known"
        total, free = self.memory
        gave, kept = self._gave.get(name, 0), self.kept.get(name, 0)
        return f"gave {gave} MiB of the GPU back and keeps {kept}; {free} of {total} are free"

    # --- inside

    def _verdict(self, what: str, need: int, remedy: str, sleepers: Iterable[str]) -> Verdict:
        if self.memory is None or need <= self.memory.free_mib:
            return Verdict()
        total, free = self.memory
        victims = [name for name in sleepers if self.kept.get(name)]
        kept = sum(self.kept[name] for name in victims)
        if need <= free + kept:
            return Verdict(victim=victims[0])
        more = f" and sleepers that may go for it keep {kept}" if kept else ""
        have = f"{free} of {total} are{more}"
        return Verdict(
            why=f"the GPU has no room: {what} with {need} MiB free, {have}: {remedy}, or free the GPU of others"
        )

    @staticmethod
    def _used(memory: Memory) -> int:
        return memory.total_mib - memory.free_mib


def share_of(argv: Iterable[str]) -> float:
    """What the engine with this command line asks for. vLLM refuses what can't be read by itself."""
    share, follows = "", False
    for word in argv:
        name, equals, value = word.partition("=")
        if follows:
            share, follows = word, False
        elif name.replace("_", "-") == SHARE:
            share, follows = value, not equals
    try:
        found = float(share) if share else DEFAULT_SHARE
    except ValueError:
        return 0.0
    return found if 0 < found <= 1 else 0.0


def out_of_memory(reason: str) -> bool:
    """Whether this is why."""
    said = reason.lower().replace(" ", "")
    return any(word.replace(" ", "") in said for word in _SHORT)
