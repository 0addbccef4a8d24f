"""A lock for what every message goes through: taking it when it is free asks for no time.

The locks of Python 3.11 look at the clock whenever they are taken. Where the kernel shares none with its processes
that is a system call, as dear as a tenth of a message. One thing in a queue is a lock as well, and asks only when it
has to wait. Not to be taken again by who has it.
"""

from __future__ import annotations

from queue import Empty, SimpleQueue


class Turn:
    def __init__(self) -> None:
        self._free: SimpleQueue[None] = SimpleQueue()
        self._free.put(None)

    def acquire(self, timeout: float) -> bool:
        """Whether it was had within so many seconds; 0: at once."""
        try:
            self._free.get(timeout > 0, timeout)
        except Empty:
            return False
        return True

    def release(self) -> None:
        self._free.put(None)

    def __enter__(self) -> None:
        self._free.get()

    def __exit__(self, *_: object) -> None:
        self._free.put(None)
