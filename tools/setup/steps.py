"""Steps of set-up: skipped when done, one at a time on the machine, with a line of progress each.

A step's work must leave its result under a temporary name and rename it last, or write a stamp last: then `done` is
true only for whole results, and an interrupted set-up goes on with the step in which it was cut off.
Silent when every step is done.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TICK_S = 10.0


class SetupError(Exception):
    """Something that the user can put right; the message says what and how."""


@dataclass(frozen=True, slots=True)
class Step:
    title: str
    done: Callable[[], bool]
    work: Callable[[], None]
    #: Folders that grow while the step works; by how much is shown when it takes long.
    grows: tuple[Path, ...] = ()


def say(text: str) -> None:
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def run(steps: Sequence[Step], lock: Path) -> None:
    """Do the steps that are not done, in order, while no other set-up uses the same cache."""
    if all(step.done() for step in steps):
        return
    started = time.monotonic()
    with only_one(lock):
        for number, step in enumerate(steps, 1):
            if not step.done():
                perform(step, f"[{number}/{len(steps)}] {step.title}")
    say(f"ready after {time.monotonic() - started:.0f} s")


def perform(step: Step, title: str) -> None:
    say(f"{title} ...")
    started = time.monotonic()
    finished = threading.Event()
    sizes = [sum(size_bytes(folder) for folder in step.grows)]

    def tick() -> None:
        while not finished.wait(TICK_S):
            sizes.append(sum(size_bytes(folder) for folder in step.grows))
            grown = sizes[-1] - min(sizes)  # a step may begin by clearing away what an interrupted one left
            size = f", {grown / 1e6:.0f} MB" if grown > 0 else ""
            say(f"{title} ... {time.monotonic() - started:.0f} s{size}")

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        step.work()
    finally:
        finished.set()
        ticker.join()
    say(f"{title}: done in {time.monotonic() - started:.1f} s")


def size_bytes(path: Path) -> int:
    """Bytes below `path`, which may change or go while it is read."""
    total = 0
    for base, _, files in os.walk(path):
        for file in files:
            try:
                total += os.lstat(os.path.join(base, file)).st_size
            except FileNotFoundError:
                continue
    return total


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Hold the lock file; it frees itself when this process and the programs it runs have ended, however they do."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as held:
        os.set_inheritable(held.fileno(), True)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.seek(0)
            say(f"waiting for another set-up (process {held.read().strip() or 'unknown'})")
            fcntl.flock(held, fcntl.LOCK_EX)
        held.seek(0)
        held.truncate()
        held.write(str(os.getpid()))
        held.flush()
        yield
