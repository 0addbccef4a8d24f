"""Ways through a ring at the receiver: bytes lie in this side's ring, travel, and are taken out over there.

Blocks in host memory are copied in and out here. Those of a GPU are not: its own engines do that at the rings'
addresses (cuda/mover.py), several pieces at once, so that a piece's frame goes out when its bytes are there.
"""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from runtimes.transport.channel import ChannelError, Frame, Way
from runtimes.transport.credit import give_back
from runtimes.transport.shm import copy_in, copy_out


class Room(NamedTuple):
    """Where the ring of one lane lies on this side."""

    address: int
    size: int
    on_gpu: bool = False  # in a GPU's memory, this one's or a peer's that this one reaches


class Ringed(Way):
    """A lane is a stream and its ring. Credit is given back for each write, in the order of the lane's writes."""

    scatters = True
    #: Whether its rings are in a GPU's memory: the host copies nothing in or out.
    on_gpu = False
    #: What this use of the rings has for itself, once they stand; b"": they are never used again.
    word = b""

    @abstractmethod
    def view(self, lane: int) -> memoryview:
        """Its ring. Raises ChannelError when it has gone: closed by another thread."""

    @abstractmethod
    def reserve(self, size: int) -> tuple[int, int]:
        """A lane, and a place in its ring; waits for credit."""

    @abstractmethod
    def post(self, lane: int, frame: Frame, body: bytes) -> None:
        """What lies at the frame's place in the ring goes to the same place over there, and then the frame."""

    def arrive(self, lane: int, frame: Frame) -> None:
        """At the receiver, the frame being here: its bytes lie in the ring when this returns."""
        if frame.offset + frame.size > len(self.view(lane)):
            raise ChannelError("protocol", "a write beyond the ring")

    def room(self, lane: int) -> Room:
        """For whoever copies by addresses."""
        view = self.view(lane)
        return Room(ctypes.addressof(ctypes.c_char.from_buffer(view)), len(view))

    def write(self, frame: Frame, checksums: bytes, blocks: Sequence[memoryview]) -> None:
        lane, offset = self.reserve(frame.size)
        copy_in(self.view(lane), blocks, offset)
        self.post(lane, frame._replace(offset=offset), checksums)

    def fetch(self, lane: int, frame: Frame, window: memoryview | None) -> None:
        self.fetch_rows(lane, frame, (window,))

    def fetch_rows(self, lane: int, frame: Frame, windows: Sequence[memoryview | None]) -> None:
        self.arrive(lane, frame)
        view, each = self.view(lane), frame.size // len(windows)
        for number, window in enumerate(windows):
            copy_out(view, frame.offset + number * each, each, window)
        give_back(self.streams[lane], frame)
