"""Memory of the pod's GPUs, as NVIDIA's management library (NVML) says it, whoever has it.

Asked by its C functions: a question takes microseconds, beside a wake of milliseconds, and makes no CUDA context. In
a pod the library knows the pod's GPUs and no others, and no processes, so what one engine has is never asked. Without
the library or a GPU, and on a part of one (MIG), nothing is known, and nobody is refused for it.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
from typing import Any, Final

from kserve_ext.core.standby.room import Memory

log = logging.getLogger(__name__)

LIBRARY: Final = "libnvidia-ml.so.1"
#: What a process had comes free while it ends, and some of it a moment later.
_STEP_S, _MOST_S = 0.05, 3.0
_MIB: Final = 1 << 20


class _Memory(ctypes.Structure):
    """nvmlMemory_v2_t. What the driver keeps is no part of what CUDA calls the total."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class Gpus:
    """`library`: "" = by its name; None: nobody asks."""

    def __init__(self, library: str | None) -> None:
        self._nvml: Any = None
        self._handles: list[ctypes.c_void_p] = []
        if library is None:
            return
        try:
            self._nvml = ctypes.CDLL(library or LIBRARY)
            self._handles = self._find()
        except (OSError, AttributeError, _Failed) as error:
            log.info("what sleeping engines keep of the GPU is not counted: %s", error)

    @property
    def there(self) -> bool:
        return bool(self._handles)

    def memory(self) -> Memory | None:
        """Of the one with the least free."""
        found = [memory for handle in self._handles if (memory := self._memory(handle)) is not None]
        return min(found, key=lambda memory: memory.free_mib, default=None)

    async def quiet(self) -> float:
        """Returns when no more comes free; after how many seconds."""
        began, before = asyncio.get_running_loop().time(), self.memory()
        while (took := asyncio.get_running_loop().time() - began) < _MOST_S:
            await asyncio.sleep(_STEP_S)
            now = self.memory()
            if now is None or before is None or now.free_mib <= before.free_mib:
                break
            before = now
        return took

    # --- inside

    def _find(self) -> list[ctypes.c_void_p]:
        self._ask("nvmlInit_v2")
        handles: list[ctypes.c_void_p] = []
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        numbers = [int(word) for word in visible.split(",") if word.strip().isdecimal()]
        count = ctypes.c_uint()
        self._ask("nvmlDeviceGetCount_v2", ctypes.byref(count))
        for number in numbers or range(count.value):
            handle, mode, pending = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_uint()
            self._ask("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(number), ctypes.byref(handle))
            answer = self._nvml.nvmlDeviceGetMigMode(handle, ctypes.byref(mode), ctypes.byref(pending))
            if answer == 0 and mode.value:
                raise _Failed(f"GPU {number} is divided (MIG)")
            handles.append(handle)
        if not handles:
            raise _Failed("there is no GPU")
        if self._memory(handles[0]) is None:
            raise _Failed("the driver doesn't say (nvmlDeviceGetMemoryInfo_v2)")
        return handles

    def _memory(self, handle: ctypes.c_void_p) -> Memory | None:
        said = _Memory(version=ctypes.sizeof(_Memory) | 2 << 24)
        if self._nvml.nvmlDeviceGetMemoryInfo_v2(handle, ctypes.byref(said)):
            return None
        return Memory((said.total - said.reserved) // _MIB, said.free // _MIB)

    def _ask(self, name: str, *arguments: Any) -> None:
        answer = getattr(self._nvml, name)(*arguments)
        if answer:
            raise _Failed(f"{name} answers {answer}")


class _Failed(Exception):
    pass
