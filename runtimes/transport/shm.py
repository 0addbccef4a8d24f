"""The bytes of writes between two processes of one host: a ring in POSIX shared memory, named once.

The receiver makes the ring and offers its name with a random token; the sender opens it and answers with the
token's echo, written into the ring: that proves that both see the same memory, which a name alone does not.
The name is removed right after; that of a maker who was killed before, by the maker of the next ring: no handshake
takes so long. All of it is had before anybody writes: a process that writes where the folder has no room left
(64 MiB, in many containers) is killed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from runtimes.transport.channel import ChannelError

_FOLDER = Path("/dev/shm")
_PREFIX = "galaxy-kv-"
_NAME = re.compile(rf"{_PREFIX}\d+-[0-9a-f]{{16}}")
_STALE_S = 60.0
_PROBE = 32  # bytes: token, then echo; overwritten by the first writes


class Ring:
    """The mapping, on either side."""

    def __init__(self, mapping: mmap.mmap, size: int) -> None:
        self._mapping = mapping
        self.size = size
        self.view = memoryview(mapping)

    @classmethod
    def create(cls, size: int) -> tuple[Ring, str, bytes]:
        """The ring, its name, and the token to offer with it. Call `unlink` soon. Raises ChannelError: no room."""
        _remove_stale()
        name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        token = secrets.token_bytes(_PROBE // 2)
        try:
            descriptor = os.open(_FOLDER / name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
                ring = cls(mmap.mmap(descriptor, size), size)
            finally:
                os.close(descriptor)
        except OSError as error:
            unlink(name)
            raise ChannelError("memory", f"no {size} bytes in {_FOLDER}: {error.strerror}") from error
        ring.view[: len(token)] = token
        return ring, name, token

    @classmethod
    def attach(cls, name: str, size: int, token: bytes) -> Ring | None:
        """None: this process does not see the offered memory."""
        if not name.startswith(_PREFIX) or "/" in name:
            return None
        try:
            descriptor = os.open(_FOLDER / name, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            if os.fstat(descriptor).st_size != size:
                return None
            ring = cls(mmap.mmap(descriptor, size), size)
        except (OSError, ValueError):
            return None
        finally:
            os.close(descriptor)
        if bytes(ring.view[: len(token)]) != token:
            ring.close()
            return None
        ring.view[len(token) : 2 * len(token)] = token[::-1]
        return ring

    def echoed(self, token: bytes) -> bool:
        return bytes(self.view[len(token) : 2 * len(token)]) == token[::-1]

    def close(self) -> None:
        with contextlib.suppress(BufferError):  # a thread is still copying: the mapping goes with its view
            self.view.release()
            self._mapping.close()


def copy_in(ring: memoryview, blocks: Sequence[memoryview], offset: int) -> None:
    """Blocks behind each other. Raises ChannelError when the ring has gone: closed by another thread."""
    try:
        for block in blocks:
            ring[offset : offset + len(block)] = block
            offset += len(block)
    except ValueError as error:
        raise ChannelError("closed", str(error)) from error


def copy_out(ring: memoryview, offset: int, size: int, window: memoryview | None) -> None:
    if offset + size > len(ring):
        raise ChannelError("protocol", "a write beyond the ring")
    if window is not None:
        window[:] = ring[offset : offset + size]


def _remove_stale() -> None:
    """Names of rings whose makers were killed during a handshake. Whoever has one of them mapped keeps it."""
    with contextlib.suppress(OSError), os.scandir(_FOLDER) as found:
        for entry in found:
            if _NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError):  # gone, or another user's
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_S:
                        unlink(entry.name)


def unlink(name: str) -> None:
    with contextlib.suppress(OSError):
        (_FOLDER / name).unlink()
