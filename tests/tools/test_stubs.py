"""Stand-ins for GPU libraries: what is planned, and that real libraries load with them."""

import ctypes
import subprocess
from pathlib import Path

from tools.setup import cpu_torch, elf, stubs
from tools.setup.elf import Library, Symbol


def library(
    soname: str, needed: list[str], wanted: list[Symbol], owners: dict[str, str] | None = None
) -> Library:
    return Library(soname, needed, owners or {}, wanted, {})


def test_a_versioned_symbol_goes_to_the_library_that_owns_the_version() -> None:
    kept = library(
        "libkept.so",
        ["libcudart.so.13", "libc.so.6"],
        [Symbol("cudaFree", "V13", 0)],
        {"V13": "libcudart.so.13"},
    )
    planned = stubs.plan([kept], {})
    assert set(planned) == {"libcudart.so.13", stubs.CATCH_ALL}
    assert planned["libcudart.so.13"].functions == {"cudaFree": "V13"}


def test_what_a_dropped_library_defined_is_stood_in_for_and_nothing_else() -> None:
    wanted = [
        Symbol("gone", "", 0),
        Symbol("table", "", 0),
        Symbol("PyList_New", "", 0),
        Symbol("ncclSend", "", 0),
    ]
    planned = stubs.plan(
        [library("libkept.so", [], wanted)], {"gone": Symbol("gone", "", 0), "table": Symbol("table", "", 40)}
    )
    assert planned[stubs.CATCH_ALL].functions == {"gone": "", "ncclSend": ""}
    assert planned[stubs.CATCH_ALL].objects == {"table": 40}


def test_what_a_kept_library_defines_is_left_alone() -> None:
    owner = Library("libowner.so", [], {}, [], {"shared": Symbol("shared", "", 0)})
    planned = stubs.plan(
        [library("libkept.so", ["libowner.so"], [Symbol("shared", "", 0)]), owner],
        {"shared": Symbol("shared", "", 0)},
    )
    assert planned[stubs.CATCH_ALL].functions == {}


def test_stand_ins_compile_load_and_fail_softly(tmp_path: Path) -> None:
    stub = stubs.Stub("libgpu.so.1")
    stub.functions = {"gpuCount": "GPU_1", "_ZN3gpu4nameEv": "", "_ZN3gpu5StateC1Ev": ""}
    stub.objects = {"gpu_table": 64, "_ZTIN3gpu5ErrorE": 16}
    path = tmp_path / stub.soname
    cpu_torch.compile_stub(stub, path, tmp_path)
    read = elf.read(path)
    assert read.defined["gpuCount"].version == "GPU_1"
    assert read.defined["gpu_table"].object_bytes == 64
    loaded = ctypes.CDLL(str(path))
    assert loaded.gpuCount() == 100
    loaded._ZN3gpu4nameEv.restype = ctypes.c_char_p
    assert loaded._ZN3gpu4nameEv() == b""
    this = ctypes.c_void_p(0)
    loaded._ZN3gpu5StateC1Ev(ctypes.byref(this))
    assert this.value


def test_readelf_tells_wanted_from_defined(tmp_path: Path) -> None:
    source = tmp_path / "user.c"
    source.write_text(
        "extern int gpuCount(void); extern int maybe(void) __attribute__((weak));"
        "int data[4]; int ask(void) { return gpuCount() + (maybe ? maybe() : 0); }"
    )
    path = tmp_path / "libuser.so"
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", path], check=True)
    read = elf.read(path)
    assert "gpuCount" in {symbol.name for symbol in read.wanted}
    assert "maybe" not in {symbol.name for symbol in read.wanted}
    assert read.defined["data"].object_bytes == 16
    assert "ask" in read.defined
