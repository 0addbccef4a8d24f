"""CUDA C to machine code for one GPU, by NVRTC: the compiler library that comes with every CUDA build of torch."""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path

from runtimes.transport.cuda.driver import CudaError


@cache
def compile_for(source: str, architecture: int) -> bytes:
    """`architecture`: 90 for compute capability 9.0. Takes some hundred milliseconds, once a process."""
    library = _library()
    program = c_void_p()
    _check(
        library.nvrtcCreateProgram(byref(program), source.encode(), b"kv.cu", 0, None, None),
        "nvrtcCreateProgram",
    )
    try:
        options = (c_char_p * 1)(f"--gpu-architecture=sm_{architecture}".encode())
        if library.nvrtcCompileProgram(program, 1, options):
            raise CudaError(f"the kernels don't compile: {_text(library, program, 'ProgramLog').decode()}")
        return _text(library, program, "CUBIN")
    finally:
        library.nvrtcDestroyProgram(byref(program))


def _text(library: ctypes.CDLL, program: c_void_p, what: str) -> bytes:
    size = c_size_t()
    _check(getattr(library, f"nvrtcGet{what}Size")(program, byref(size)), f"nvrtcGet{what}Size")
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(library, f"nvrtcGet{what}")(program, buffer), f"nvrtcGet{what}")
    return buffer.raw


def _check(result: int, name: str) -> None:
    if result:
        raise CudaError(f"{name}: error {result}")


@cache
def _library() -> ctypes.CDLL:
    for path in _candidates():
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for name in (
            "CreateProgram",
            "CompileProgram",
            "DestroyProgram",
            "GetProgramLogSize",
            "GetCUBINSize",
        ):
            getattr(library, f"nvrtc{name}").restype = c_int
        library.nvrtcCreateProgram.argtypes = [c_void_p, c_char_p, c_char_p, c_int, c_void_p, c_void_p]
        library.nvrtcCompileProgram.argtypes = [c_void_p, c_int, c_void_p]
        for name in ("ProgramLogSize", "ProgramLog", "CUBINSize", "CUBIN"):
            getattr(library, f"nvrtcGet{name}").argtypes = [c_void_p, c_void_p]
        return library
    raise CudaError("libnvrtc can't be found: install torch's CUDA build (it depends on nvidia-cuda-nvrtc)")


def _candidates() -> list[str]:
    """As wheels install it, then as the system knows it."""
    found: list[str] = []
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        found += [str(path) for path in sorted(Path(folder).glob("*/lib/libnvrtc.so.*"))]
    return [*found, "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
