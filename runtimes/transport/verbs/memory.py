"""Memory that a device may read and write, and a peer as it is said: for existing buffers, never copied or owned.

A region keeps its buffer alive and where it is. Buffers are anything with the buffer protocol (a CPU tensor's
`numpy()`, mmap, bytearray), an address that somebody else keeps valid (pinned host memory), or a dma-buf.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from typing import TYPE_CHECKING, Any, Final

from runtimes.transport.verbs.work import Piece

if TYPE_CHECKING:
    from runtimes.transport.verbs.native import Card, Key, Memory


_POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE; from Linux 5.14 on
_libc: Final = ctypes.CDLL(None)


class Region:
    """`address` is what both sides count from; `view` is None for memory that this process doesn't see."""

    def __init__(
        self, memory: Memory, address: int, length: int, keeps: Any, view: memoryview | None
    ) -> None:
        self.address = address
        self.length = length
        self.view = view
        self.key: Key = memory.key
        self._memory: Memory | None = memory
        self._keeps = keeps

    def piece(self, offset: int, size: int, remote: int, remote_key: int) -> Piece:
        """These bytes of ours, and the place at the peer that they are for (or come from)."""
        if offset < 0 or size < 0 or offset + size > self.length:
            raise ValueError(f"bytes {offset} to {offset + size} of a region of {self.length}")
        return Piece(self.address + offset, self.key.local, remote, remote_key, size)

    def close(self) -> None:
        """Ends the registration. Whoever still writes by its key fails from now on."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()
        view, self.view = self.view, None
        if view is not None:
            with contextlib.suppress(BufferError):  # a thread is still copying: the memory goes with its view
                view.release()
        self._keeps = None


def populate(address: int, length: int) -> None:
    """Gives this memory its pages now. Registering does so as well, but with the interpreter's lock held.

    Best effort: an older kernel doesn't know it, and memory of other kinds has its pages.
    """
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    size = ctypes.c_size_t(address + length - start)
    _libc.madvise(ctypes.c_void_p(start), size, ctypes.c_int(_POPULATE_WRITE))


def register(card: Card, buffer: Any, *, remote: bool = True, readable: bool = False) -> Region:
    """`remote`: whether peers that are given the key may write it; `readable`: and read it."""
    view = memoryview(buffer).cast("B")
    if view.readonly:
        raise ValueError("memory to be registered must be writable, this buffer is read-only")
    if not len(view):
        raise ValueError("memory to be registered has no bytes")
    start = (ctypes.c_char * len(view)).from_buffer(view)
    address = ctypes.addressof(start)
    populate(address, len(view))
    memory = card.register(address, len(view), remote=remote, readable=readable)
    return Region(memory, address, len(view), (buffer, start), view)


def register_at(card: Card, address: int, length: int, owner: Any, *, remote: bool = True) -> Region:
    """Memory known by its address, as that of a pinned tensor; `owner` keeps it valid."""
    return Region(card.register(address, length, remote=remote), address, length, owner, None)


def register_dmabuf(
    card: Card, descriptor: int, offset: int, length: int, owner: Any, *, remote: bool = True
) -> Region:
    """GPU memory, by the dma-buf that its driver exports; peers count from `offset`."""
    memory = card.register_dmabuf(descriptor, offset, length, remote=remote)
    return Region(memory, offset, length, owner, None)
