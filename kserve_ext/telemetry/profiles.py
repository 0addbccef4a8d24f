"""Profiles of this process as pprof has them: CPU by sampling, what was allocated, and tasks and threads.

CPU: where the main thread is whenever the process has had a hundredth of a second of it (SIGPROF), with the time that
the thread has had since the sample before; a line of Python that calls into C stands for all that C does. Heap: what
was allocated while it was looked at and is still there (tracemalloc; what is older nobody has noted). Nothing here
costs anything while no profile is taken. In Go: net/http/pprof, runtime/pprof.
"""

from __future__ import annotations

import asyncio
import gc
import linecache
import signal
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

from kserve_ext.wire.pprof import Kind, Place, Profile, Sample

PERIOD_S: Final = 0.01
#: Frames of each stack that tracemalloc notes; more cost more.
HEAP_FRAMES: Final = 24
_BILLION: Final = 10**9
_SHOWN: Final = 40  # types of objects

Wait = Callable[[float], bool]  # for so long; whether to stop


class Sampler:
    """Made on the main thread, which alone may take the signal; `sample` is for any other."""

    def __init__(self) -> None:
        self._stacks: Counter[tuple[Place, ...]] | None = None  # None: nobody asks
        self._spent: Counter[tuple[Place, ...]] = Counter()
        self._used_ns = 0
        self._before = signal.signal(signal.SIGPROF, self._sampled)

    def close(self) -> None:
        """On the main thread."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._before)

    @property
    def samples(self) -> int:
        """So far, of the profile that is being taken."""
        return sum((self._stacks or {}).values())

    def sample(self, seconds: float, wait: Wait) -> Profile:
        began, begun = time.time_ns(), time.monotonic_ns()
        self._used_ns = 0
        self._spent = Counter()
        taken = self._stacks = Counter()
        signal.setitimer(signal.ITIMER_PROF, PERIOD_S, PERIOD_S)
        try:
            wait(seconds)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._stacks = None
        samples = [Sample(stack, (count, self._spent[stack])) for stack, count in list(taken.items())]
        kinds = (Kind("samples", "count"), Kind("cpu", "nanoseconds"))
        return Profile(kinds, samples, began, time.monotonic_ns() - begun, int(PERIOD_S * _BILLION))

    def _sampled(self, signal_number: int, frame: FrameType | None) -> None:
        taken, used = self._stacks, time.thread_time_ns()
        if taken is None:
            return
        stack = tuple(_places(frame))
        taken[stack] += 1
        self._spent[stack] += used - self._used_ns if self._used_ns else int(PERIOD_S * _BILLION)
        self._used_ns = used


def heap(seconds: float, wait: Wait) -> Profile:
    began = time.time_ns()
    tracemalloc.start(HEAP_FRAMES)
    try:
        wait(seconds)
        traces = tracemalloc.take_snapshot().traces
    finally:
        tracemalloc.stop()
    objects: Counter[tuple[Place, ...]] = Counter()
    space: Counter[tuple[Place, ...]] = Counter()
    for trace in traces:
        stack = tuple(
            Place(
                linecache.getline(frame.filename, frame.lineno).strip() or frame.filename,
                frame.filename,
                frame.lineno,
            )
            for frame in reversed(trace.traceback)
        )
        objects[stack] += 1
        space[stack] += trace.size
    samples = [Sample(stack, (objects[stack], space[stack])) for stack in objects]
    kinds = (Kind("inuse_objects", "count"), Kind("inuse_space", "bytes"))
    comment = f"allocated within {seconds:g} s and still there; functions are lines of source"
    return Profile(kinds, samples, began, int(seconds * _BILLION), 1, comment)


def goroutines(loop: asyncio.AbstractEventLoop) -> Profile:
    """Tasks of the loop, and threads: what goroutines are to Go."""
    counts: Counter[tuple[Place, ...]] = Counter(stack for _, stack in _everything(loop))
    samples = [Sample(stack, (count,)) for stack, count in counts.items()]
    return Profile((Kind("goroutine", "count"),), samples, time.time_ns(), 0, 1, "tasks and threads")


def goroutines_text(loop: asyncio.AbstractEventLoop) -> str:
    """The same for people to read: everything with its name and its stack, where it is last."""
    lines: list[str] = []
    for name, stack in _everything(loop):
        lines.append(name)
        lines += [f"    {place.file}:{place.line} {place.function}" for place in reversed(stack)]
        lines.append("")
    return "\n".join(lines)


def heap_text() -> str:
    """What the collector of cycles knows of: how many objects of which type, and their own sizes."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for found in gc.get_objects():
        name = f"{type(found).__module__}.{type(found).__qualname__}"
        counts[name] += 1
        sizes[name] += sys.getsizeof(found, 0)
    lines = [f"{sum(counts.values())} objects, {sum(sizes.values())} bytes without what they refer to", ""]
    lines += [f"{size:>12} bytes {counts[name]:>9} {name}" for name, size in sizes.most_common(_SHOWN)]
    return "\n".join(lines) + "\n"


def _everything(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[str, tuple[Place, ...]]]:
    for task in asyncio.all_tasks(loop):
        yield f"task {task.get_name()}", tuple(reversed(list(_awaited(task.get_coro()))))
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        yield f"thread {names.get(ident, ident)}", tuple(_places(frame))


def _awaited(found: Any) -> Iterator[Place]:
    """What a task is at: its coroutine, what that awaits, and so on."""
    while found is not None:
        frame = getattr(found, "cr_frame", None) or getattr(found, "gi_frame", None)
        if frame is not None:
            yield _place(frame)
        found = getattr(found, "cr_await", None) or getattr(found, "gi_yieldfrom", None)


def _places(frame: FrameType | None) -> Iterator[Place]:
    while frame is not None:
        yield _place(frame)
        frame = frame.f_back


def _place(frame: FrameType) -> Place:
    code = frame.f_code
    return Place(code.co_qualname, code.co_filename, frame.f_lineno or 0, code.co_firstlineno)
