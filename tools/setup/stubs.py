"""Stand-ins for GPU libraries: the symbols that the kept part of torch names, and nothing behind them.

`plan` decides which stand-in defines what; `source` and `version_script` write it down for the compiler. On a machine
without a GPU the functions are hardly ever called, so they only have to fail softly:
a C function (CUDA's API) returns 100, which CUDA calls "no device"; a C++ function returns the address of zeroed
memory, which reads as false, as an empty object, and can be written to. Constructors and type descriptions are real
enough for pybind11, which looks at both when torch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tools.setup.elf import Library, Symbol

#: Symbols without a version go here, whoever owned them: the dynamic linker looks in all loaded libraries.
CATCH_ALL = "libtorch_cuda.so"
SYSTEM = re.compile(r"(lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|gomp)\.so|ld-linux)")
GPU_API = re.compile(r"(cuda|cu[A-Z]|nccl|cudnn|cupti|cuFile|cublas|cufft|cusolver|cusparse|curand|nvrtc)")
CONSTRUCTOR = re.compile(r"_Z\w*C[12]E")

PRELUDE = """\
struct type { void *table; const char *name; void *rest[6]; };
extern void *_ZTVN10__cxxabiv117__class_type_infoE[];
static char zeroes[4096] __attribute__((aligned(64)));
__attribute__((unused)) static void *answer_zeroes(void) { return zeroes; }
#define TYPE(symbol, text) struct type symbol = { _ZTVN10__cxxabiv117__class_type_infoE + 2, text };
#define OBJECT(symbol, size) char symbol[size] __attribute__((aligned(16)));
#define C_FUNCTION(symbol) int symbol(void) { return 100; }
#define CXX_FUNCTION(symbol) void *symbol(void) { return zeroes; }
#define CONSTRUCTOR(symbol) void *symbol(void **self) { *self = virtual_table + 2; return self; }
"""
VIRTUAL_TABLE = """\
static TYPE(stand_in, "8stand_in")
static void *virtual_table[66] = { 0, &stand_in, [2 ... 65] = answer_zeroes };
"""


@dataclass(slots=True)
class Stub:
    soname: str
    #: Function -> its symbol version, empty for none.
    functions: dict[str, str] = field(default_factory=dict)
    #: Data object -> its size in bytes.
    objects: dict[str, int] = field(default_factory=dict)


def plan(kept: Iterable[Library], dropped: Mapping[str, Symbol]) -> dict[str, Stub]:
    """One stub for each library that the kept ones need and the machine has not: together, all that is missing.

    `dropped` are the symbols of the GPU libraries that were taken out.
    """
    kept = list(kept)
    present = {library.soname for library in kept}
    absent = {
        name for library in kept for name in library.needed if name not in present and not SYSTEM.match(name)
    }
    stubs = {soname: Stub(soname) for soname in sorted(absent | {CATCH_ALL})}
    defined = set().union(*(library.defined for library in kept))
    for library in kept:
        for symbol in library.wanted:
            if symbol.name in defined:
                continue
            gone = dropped.get(symbol.name)
            owner = library.version_owners.get(symbol.version, "")
            if owner in absent:
                stubs[owner].functions[symbol.name] = symbol.version
            elif gone and gone.object_bytes:
                stubs[CATCH_ALL].objects[symbol.name] = gone.object_bytes
            elif gone or (not symbol.version and GPU_API.match(symbol.name)):
                stubs[CATCH_ALL].functions[symbol.name] = ""
    return stubs


def source(stub: Stub) -> str:
    """The stub as C."""
    lines = [PRELUDE]
    if any(CONSTRUCTOR.match(name) for name in stub.functions):
        lines.append(VIRTUAL_TABLE)
    for name in sorted(stub.functions):
        kind = (
            "CONSTRUCTOR"
            if CONSTRUCTOR.match(name)
            else "CXX_FUNCTION"
            if name.startswith("_Z")
            else "C_FUNCTION"
        )
        lines.append(f"{kind}({name})")
    for name, size in sorted(stub.objects.items()):
        is_type = name.startswith("_ZTI")
        lines.append(f'TYPE({name}, "{name[4:]}")' if is_type else f"OBJECT({name}, {max(size, 8)})")
    return "\n".join(lines) + "\n"


def version_script(stub: Stub) -> str:
    """For the linker: which function carries which version. Empty when none does."""
    groups: dict[str, list[str]] = {}
    for name, version in sorted(stub.functions.items()):
        if version:
            groups.setdefault(version, []).append(name)
    return "".join(
        f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in sorted(groups.items())
    )
