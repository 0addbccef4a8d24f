"""Slots: equal pieces of memory that one side fills and the other empties, by their addresses.

Kinds: `pinned`, page-locked memory of this process, which the GPU's copy engines read and write at full speed and a
network card sends from. `shared` and `attached`: the same in a file of /dev/shm that two processes map, so that a
transfer on one host needs no copy between them. `on_gpu`: memory of this GPU, offered to a sender on the same host;
`of_peer`: what the sender sees of it, through CUDA IPC.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from runtimes.transport.cuda.driver import CudaError, Device

_FOLDER = Path("/dev/shm")
_PREFIX = "galaxy-kv-slots-"


class SlotError(Exception):
    """Slots of this kind can't be had here; says why and what to do."""


class Slots:
    """`addresses`: one a slot. `on_gpu`: whether that memory is a GPU's."""

    def __init__(self, address: int, count: int, size: int, on_gpu: bool, end: Callable[[], None]) -> None:
        self.addresses = [address + number * size for number in range(count)]
        self.size = size
        self.on_gpu = on_gpu
        self._end = end

    def close(self) -> None:
        """When nobody reads or writes them any more."""
        if self.addresses:
            self.addresses = []
            self._end()


def pinned(device: Device, count: int, size: int) -> Slots:
    device.enter()
    address = device.allocate_host(count * size)
    return Slots(address, count, size, False, lambda: device.free_host(address))


def shared(device: Device, count: int, size: int) -> tuple[Slots, str]:
    """And the name by which another process attaches them; `unlink` it then."""
    name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    descriptor = os.open(_FOLDER / name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        os.ftruncate(descriptor, count * size)
        return _map(device, descriptor, count, size), name
    except BaseException:
        unlink(name)
        raise
    finally:
        os.close(descriptor)


def attached(device: Device, name: str, count: int, size: int) -> Slots:
    if not name.startswith(_PREFIX) or "/" in name:
        raise SlotError(f"{name!r} is no name of slots")
    try:
        descriptor = os.open(_FOLDER / name, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        raise SlotError(
            f"{name} can't be opened ({error.strerror}): the two processes don't share /dev/shm"
        ) from error
    try:
        found = os.fstat(descriptor).st_size
        if found != count * size:
            raise SlotError(f"{name} has {found} bytes, not {count} slots of {size}")
        return _map(device, descriptor, count, size)
    finally:
        os.close(descriptor)


def unlink(name: str) -> None:
    (_FOLDER / name).unlink(missing_ok=True)


def on_gpu(device: Device, count: int, size: int) -> tuple[Slots, bytes]:
    """And the handle for `of_peer`; they must live as long as any peer has them open."""
    device.enter()
    address = device.allocate(count * size)
    return Slots(address, count, size, True, lambda: device.free(address)), device.export(address)


def of_peer(device: Device, handle: bytes, count: int, size: int) -> Slots:
    """As this GPU reaches them."""
    device.enter()
    try:
        address = device.open(handle)
    except CudaError as error:
        raise SlotError(
            f"the peer's GPU memory can't be opened by CUDA IPC ({error}): both processes must see both GPUs, and "
            "be in one PID and IPC namespace"
        ) from error
    return Slots(address, count, size, True, lambda: device.close(address))


def _map(device: Device, descriptor: int, count: int, size: int) -> Slots:
    device.enter()
    mapping = mmap.mmap(descriptor, count * size)
    view = (ctypes.c_ubyte * (count * size)).from_buffer(mapping)
    address = ctypes.addressof(view)
    try:
        device.pin(address, count * size)
    except CudaError as error:
        del view
        mapping.close()
        raise SlotError(
            f"{count * size} bytes can't be page-locked ({error}): raise `ulimit -l`, or use fewer slots"
        ) from error
    held = [view]

    def end() -> None:
        device.unpin(address)
        held.clear()
        mapping.close()

    return Slots(address, count, size, False, end)
