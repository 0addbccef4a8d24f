"""The few calls of CUDA's driver that transfers need, by ctypes: those that wait release the interpreter.

An order of magnitude cheaper a call than torch's streams and events, which decides how fast slots of a few MiB
follow each other. Uses the primary context of a device, as torch does, so that its tensors can be read here. Every
failure is a CudaError with the driver's own name for it. Knows no blocks or transfers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Final

HANDLE_BYTES: Final = 64
_NO_TIMING = 2
_NON_BLOCKING = 1
_PORTABLE = 1
_LAZY_PEER_ACCESS = 1
_FLUSH_OPTIONS, _ORDERING = 117, 118  # attributes: how a card's writes are flushed, and who sees them without
_BY_HOST = 1
_OWNER = 100  # this GPU, in both attributes and flushes
_CURRENT_CONTEXT = 0
_BEFORE_OTHERS = (
    -100
)  # the driver takes its highest: short kernels get in between the groups of an engine's long ones
_WAITING: Final = frozenset(("cuEventSynchronize",))


class CudaError(Exception):
    """A call failed: which, and the driver's name for why."""


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", c_ubyte * HANDLE_BYTES),)


_SIGNATURES: Final = {
    "cuInit": [c_uint],
    "cuGetErrorName": [c_int, POINTER(c_char_p)],
    "cuDeviceGet": [POINTER(c_int), c_int],
    "cuDeviceGetAttribute": [POINTER(c_int), c_int, c_int],
    "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
    "cuCtxSetCurrent": [c_void_p],
    "cuModuleLoadData": [POINTER(c_void_p), c_char_p],
    "cuModuleGetFunction": [POINTER(c_void_p), c_void_p, c_char_p],
    "cuLaunchKernel": [c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p],
    "cuStreamCreateWithPriority": [POINTER(c_void_p), c_uint, c_int],
    "cuStreamDestroy_v2": [c_void_p],
    "cuStreamSynchronize": [c_void_p],
    "cuStreamWaitEvent": [c_void_p, c_void_p, c_uint],
    "cuEventCreate": [POINTER(c_void_p), c_uint],
    "cuEventDestroy_v2": [c_void_p],
    "cuEventRecord": [c_void_p, c_void_p],
    "cuEventSynchronize": [c_void_p],
    "cuMemcpyAsync": [c_uint64, c_uint64, c_size_t, c_void_p],
    "cuMemsetD8Async": [c_uint64, c_ubyte, c_size_t, c_void_p],
    "cuMemAlloc_v2": [POINTER(c_uint64), c_size_t],
    "cuMemFree_v2": [c_uint64],
    "cuMemHostAlloc": [POINTER(c_void_p), c_size_t, c_uint],
    "cuMemFreeHost": [c_void_p],
    "cuMemHostRegister_v2": [c_void_p, c_size_t, c_uint],
    "cuMemHostUnregister": [c_void_p],
    "cuFlushGPUDirectRDMAWrites": [c_int, c_int],
    "cuIpcGetMemHandle": [POINTER(_Handle), c_uint64],
    "cuIpcOpenMemHandle_v2": [POINTER(c_uint64), _Handle, c_uint],
    "cuIpcCloseMemHandle": [c_uint64],
}


class _Driver:
    """The library; each function of _SIGNATURES as `call`."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise CudaError("libcuda.so.1 can't be loaded: there is no NVIDIA driver here") from error
        self._quick = ctypes.PyDLL("libcuda.so.1")
        for name, types in _SIGNATURES.items():
            for library in (self._library, self._quick):
                function = getattr(library, name)
                function.argtypes, function.restype = types, c_int
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: object) -> None:
        result = getattr(self._library, name)(*arguments)
        if result:
            raise CudaError(f"{name}: {self._name(result)}")

    def function(self, name: str) -> Callable[..., int]:
        """For calls that are made thousands of times a second; `check` looks at what they return.

        Those that only queue work keep the interpreter: with two busy threads, giving it up and getting it back costs
        more than the call.
        """
        found: Callable[..., int] = getattr(self._library if name in _WAITING else self._quick, name)
        return found

    def check(self, result: int, name: str) -> None:
        if result:
            raise CudaError(f"{name}: {self._name(result)}")

    def _name(self, result: int) -> str:
        text = c_char_p()
        self._library.cuGetErrorName(result, byref(text))
        return text.value.decode() if text.value else str(result)


@cache
def present() -> bool:
    """Whether there is a driver. Does not begin to use it: a process that has can't be forked any more."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@cache
def _driver() -> _Driver:
    return _Driver()


class Device:
    """One GPU, and what can be made on it; who makes something ends it."""

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self._driver = driver = _driver()
        device = c_int()
        driver.call("cuDeviceGet", byref(device), ordinal)
        self._context = c_void_p()
        driver.call("cuDevicePrimaryCtxRetain", byref(self._context), device)
        major, minor = c_int(), c_int()
        driver.call("cuDeviceGetAttribute", byref(major), 75, device)
        driver.call("cuDeviceGetAttribute", byref(minor), 76, device)
        self.architecture = major.value * 10 + minor.value
        options, ordering = c_int(), c_int()
        driver.call("cuDeviceGetAttribute", byref(options), _FLUSH_OPTIONS, device)
        driver.call("cuDeviceGetAttribute", byref(ordering), _ORDERING, device)
        #: Whether what a network card writes must be flushed before a kernel may read it, and whether it can be.
        self.flushes = ordering.value < _OWNER
        self.flushable = not self.flushes or bool(options.value & _BY_HOST)
        self._set_current = driver.function("cuCtxSetCurrent")
        self._copy = driver.function("cuMemcpyAsync")
        self._launch = driver.function("cuLaunchKernel")
        self._record = driver.function("cuEventRecord")
        self._wait = driver.function("cuStreamWaitEvent")
        self._synchronize = driver.function("cuEventSynchronize")

    def enter(self) -> None:
        """Makes this device the calling thread's. Each thread has to, before it calls anything below."""
        self._driver.check(self._set_current(self._context), "cuCtxSetCurrent")

    # --- once

    def stream(self) -> c_void_p:
        stream = c_void_p()
        self._driver.call("cuStreamCreateWithPriority", byref(stream), _NON_BLOCKING, _BEFORE_OTHERS)
        return stream

    def event(self) -> c_void_p:
        event = c_void_p()
        self._driver.call(
            "cuEventCreate", byref(event), _NO_TIMING
        )  # waited for actively: a sleep costs 50 us
        return event

    def destroy(self, streams: list[c_void_p], events: list[c_void_p]) -> None:
        for stream in streams:
            self._driver.call("cuStreamDestroy_v2", stream)
        for event in events:
            self._driver.call("cuEventDestroy_v2", event)

    def load(self, image: bytes, names: tuple[str, ...]) -> list[c_void_p]:
        """Functions of a compiled module."""
        module = c_void_p()
        self._driver.call("cuModuleLoadData", byref(module), image)
        functions = []
        for name in names:
            function = c_void_p()
            self._driver.call("cuModuleGetFunction", byref(function), module, name.encode())
            functions.append(function)
        return functions

    def allocate(self, size: int) -> int:
        address = c_uint64()
        self._driver.call("cuMemAlloc_v2", byref(address), size)
        return address.value

    def free(self, address: int) -> None:
        self._driver.call("cuMemFree_v2", address)

    def allocate_host(self, size: int) -> int:
        """Page-locked memory of this process."""
        address = c_void_p()
        self._driver.call("cuMemHostAlloc", byref(address), size, _PORTABLE)
        return address.value or 0

    def free_host(self, address: int) -> None:
        self._driver.call("cuMemFreeHost", address)

    def pin(self, address: int, size: int) -> None:
        """Page-locks memory that is there already."""
        self._driver.call("cuMemHostRegister_v2", address, size, _PORTABLE)

    def unpin(self, address: int) -> None:
        self._driver.call("cuMemHostUnregister", address)

    def export(self, address: int) -> bytes:
        """A handle by which another process of this host opens memory of `allocate`."""
        handle = _Handle()
        self._driver.call("cuIpcGetMemHandle", byref(handle), address)
        return bytes(handle.reserved)

    def open(self, handle: bytes) -> int:
        """The address at which this GPU reaches another process's memory, on whichever GPU that is."""
        address = c_uint64()
        said = _Handle.from_buffer_copy(handle)
        self._driver.call("cuIpcOpenMemHandle_v2", byref(address), said, _LAZY_PEER_ACCESS)
        return address.value

    def close(self, address: int) -> None:
        self._driver.call("cuIpcCloseMemHandle", address)

    def zero(self, address: int, size: int, stream: c_void_p) -> None:
        self._driver.call("cuMemsetD8Async", address, 0, size, stream)

    def drain(self, stream: c_void_p) -> None:
        """Returns when everything given to the stream is done."""
        self._driver.call("cuStreamSynchronize", stream)

    # --- for every chunk

    def see_writes(self) -> None:
        """What a network card has written into this GPU's memory is there for whatever is launched from now on."""
        if self.flushes:
            self._driver.call("cuFlushGPUDirectRDMAWrites", _CURRENT_CONTEXT, _OWNER)

    def copy(self, target: int, source: int, size: int, stream: c_void_p) -> None:
        """Between any two of: memory of this GPU, of a peer, page-locked memory."""
        self._driver.check(self._copy(target, source, size, stream), "cuMemcpyAsync")

    def launch(
        self,
        function: c_void_p,
        grid: tuple[int, int],
        threads: int,
        arguments: ctypes.Array[c_void_p],
        stream: c_void_p,
    ) -> None:
        result = self._launch(function, grid[0], grid[1], 1, threads, 1, 1, 0, stream, arguments, None)
        self._driver.check(result, "cuLaunchKernel")

    def record(self, event: c_void_p, stream: c_void_p) -> None:
        self._driver.check(self._record(event, stream), "cuEventRecord")

    def wait(self, stream: c_void_p, event: c_void_p) -> None:
        """What comes after on the stream waits for the event; this thread does not."""
        self._driver.check(self._wait(stream, event, 0), "cuStreamWaitEvent")

    def synchronize(self, event: c_void_p) -> None:
        """Returns when the event has happened; other threads run meanwhile."""
        self._driver.check(self._synchronize(event), "cuEventSynchronize")
