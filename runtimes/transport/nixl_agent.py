"""NIXL's agent: memory that is registered with it, and transfers between that and a peer's. The only file that
imports NIXL.

What UCX finds between the two sides is its own affair (UCX_TLS, UCX_NET_DEVICES), but for ways that a receiver
could not put an end to: the kernel's from process to process. Host memory only. The libraries that come with nixl
1.5 crash when a process ends by `exit`; ours end by `_exit`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Final

from runtimes.transport.channel import ChannelError, Extent

_UNENDING: Final = ("cma", "knem", "xpmem")
#: UCX's names for all of shared memory.
_SHARED: Final = {"sm": ("posix", "sysv"), "shm": ("posix", "sysv"), "mm": ("posix", "sysv")}
_environment: Final = threading.Lock()


@functools.cache
def version() -> str:
    """Of the package; "" where it is not installed."""
    try:
        return importlib.metadata.version("nixl")
    except importlib.metadata.PackageNotFoundError:
        return ""


def allowed_ways(given: str) -> str:
    """UCX_TLS without the ways by which the kernel lets a process write into another: their owner can't end those."""
    if not given or given == "all":
        return "^" + ",".join(_UNENDING)
    words = [word.strip() for word in given.removeprefix("^").split(",")]
    if given.startswith("^"):
        return "^" + ",".join(dict.fromkeys((*words, *_UNENDING)))
    kept = [each for word in words for each in _SHARED.get(word, (word,)) if each not in _UNENDING]
    return ",".join(dict.fromkeys(kept))


@contextlib.contextmanager
def _ucx_ways(ways: str) -> Iterator[None]:
    """UCX reads its environment when an agent is made."""
    with _environment:
        before = os.environ.get("UCX_TLS")
        os.environ["UCX_TLS"] = ways
        try:
            yield
        finally:
            if before is None:
                del os.environ["UCX_TLS"]
            else:
                os.environ["UCX_TLS"] = before


class Agent:
    """NIXL's agent with registered memory. For one thread at a time."""

    def __init__(self, layers: Sequence[Extent]) -> None:
        """Raises ChannelError."""
        os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
        try:
            from nixl import _api as nixl  # type: ignore[import-not-found,unused-ignore]

            setting = nixl.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
            with _ucx_ways(allowed_ways(os.environ.get("UCX_TLS", ""))):
                self._nixl: Any = nixl.nixl_agent(f"galaxy-{uuid.uuid4().hex}", setting)
        except Exception as error:  # whatever its libraries raise
            raise ChannelError("device", f"NIXL does not start: {text(error)}") from error
        try:
            #: One byte for the first read.
            self.scratch = ctypes.create_string_buffer(64)
            regions = [(layer.address, layer.size, 0, "") for layer in layers]
            regions.append((ctypes.addressof(self.scratch), len(self.scratch), 0, ""))
            # To give the same memory back twice crashes it.
            self._memory = self._nixl.register_memory(list(dict.fromkeys(regions)), "DRAM", ["UCX"])
        except Exception as error:
            raise ChannelError("memory", f"NIXL can't register the KV memory: {text(error)}") from error

    def card(self) -> bytes:
        return bytes(self._nixl.get_agent_metadata())

    def meet(self, card: bytes) -> str:
        name = self._nixl.add_remote_agent(card)
        return name.decode() if isinstance(name, bytes) else str(name)

    def post(
        self, kind: str, here: Sequence[tuple[int, int]], there: Sequence[tuple[int, int]], peer: str
    ) -> Any:
        """A transfer of pieces of memory, each an address and a size; it has begun."""
        mine, theirs = (
            self._nixl.get_xfer_descs([(address, size, 0) for address, size in pieces], "DRAM")
            for pieces in (here, there)
        )
        handle = self._nixl.initialize_xfer(kind, mine, theirs, peer)
        self._nixl.transfer(handle)
        return handle

    def done(self, handle: Any) -> bool:
        state = self._nixl.check_xfer_state(handle)
        if state == "ERR":
            raise ChannelError("unreachable", "NIXL could not write: see its log for the reason")
        return bool(state == "DONE")

    def progress(self) -> None:
        self._nixl.get_new_notifs()

    def close(self) -> None:
        try:
            with contextlib.suppress(Exception):  # its destructor does what is left
                self._nixl.deregister_memory(self._memory)
        finally:
            self._nixl = None


def joined(blocks: Sequence[memoryview]) -> list[tuple[int, int]]:
    """Address and size of the blocks' memory, neighbours as one."""
    out: list[tuple[int, int]] = []
    for block in blocks:
        try:
            address = ctypes.addressof(ctypes.c_char.from_buffer(block))
        except TypeError as error:
            raise ValueError("blocks that are written must lie in the memory that is in use") from error
        if out and sum(out[-1]) == address:
            out[-1] = (out[-1][0], out[-1][1] + len(block))
        else:
            out.append((address, len(block)))
    return out


def text(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:300]
