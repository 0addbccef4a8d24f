"""GPU memory as an RDMA device knows it: by a dma-buf that the GPU's driver exports, or with nvidia_peermem as it is.

The first needs no module beside the drivers and is tried first. Where neither goes, both reasons are said: the rung
`rdma` is passed over with them, and blocks of the GPU go through rings.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtimes.transport.channel import ChannelError, Extent
from runtimes.transport.verbs import memory

if TYPE_CHECKING:
    from runtimes.transport.verbs.memory import Region
    from runtimes.transport.verbs.native import Card

_MODULES: Final = ("nvidia_peermem", "nv_peer_mem")
_LOADED: Final = Path("/sys/module")
_DMA_BUF: Final = 1  # CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD
_ORDINAL: Final = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL


def register(card: Card, extent: Extent, *, remote: bool) -> Region:
    """`remote`: whether peers that are given the key may write it."""
    try:
        return _by_dmabuf(card, extent, remote)
    except ChannelError as error:
        why = error.detail
    if any((_LOADED / name).exists() for name in _MODULES):
        return memory.register_at(card, extent.address, extent.size, extent.owner, remote=remote)
    remedy = "nvidia_peermem is not loaded: modprobe it, or use NVIDIA's open driver, which knows dma-buf"
    raise ChannelError("memory", f"GPU memory: {why}; {remedy}")


def _by_dmabuf(card: Card, extent: Extent, remote: bool) -> Region:
    """Whole pages are exported, so the layer begins somewhere in the first one."""
    offset = extent.address % mmap.PAGESIZE
    length = -(-(offset + extent.size) // mmap.PAGESIZE) * mmap.PAGESIZE
    descriptor = export(extent.address - offset, length)
    try:
        return memory.register_dmabuf(card, descriptor, offset, extent.size, extent.owner, remote=remote)
    finally:
        os.close(descriptor)  # the registration keeps the memory by itself


def export(address: int, length: int) -> int:
    """A descriptor of a dma-buf. Raises ChannelError with the driver's word for why there is none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        get = cuda.cuMemGetHandleForAddressRange
    except (OSError, AttributeError) as error:
        raise ChannelError(
            "memory", f"no dma-buf: NVIDIA's driver is not here, or too old ({error})"
        ) from error
    ordinal, context, descriptor = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_int(-1)
    place = ctypes.c_uint64(address)
    failed = (
        cuda.cuInit(0)
        or cuda.cuPointerGetAttribute(ctypes.byref(ordinal), _ORDINAL, place)
        or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), ordinal)
        or cuda.cuCtxSetCurrent(context)
        or get(ctypes.byref(descriptor), place, ctypes.c_size_t(length), _DMA_BUF, ctypes.c_uint64(0))
    )
    if failed:
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(failed, ctypes.byref(name))
        word = name.value.decode() if name.value else f"CUDA error {failed}"
        raise ChannelError("memory", f"no dma-buf: NVIDIA's driver exports none ({word})")
    return descriptor.value
