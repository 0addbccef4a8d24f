"""What a shared library offers and asks for, as `readelf` tells it. Reads only; knows nothing of torch or CUDA."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

#: Num: Value Size Type Bind Vis Ndx Name[@version | @@version], as `readelf --dyn-syms -W` prints it.
SYMBOL = re.compile(
    r"\s*\d+: [0-9a-f]+\s+(?P<size>0x[0-9a-f]+|\d+) (?P<type>\w+)\s+(?P<bind>\w+)\s+\w+\s+(?P<section>\w+) "
    r"(?P<name>[^@\s]+)(?:@@?(?P<version>\S+))?"
)


class Symbol(NamedTuple):
    name: str
    #: Empty when the symbol has none.
    version: str
    #: Bytes of a data object; 0 for functions.
    object_bytes: int


class Library(NamedTuple):
    soname: str
    #: The libraries it must be loaded with.
    needed: list[str]
    #: Symbol version -> the library that must define it.
    version_owners: dict[str, str]
    #: What others must define for it (weak symbols, which may stay absent, are left out).
    wanted: list[Symbol]
    defined: dict[str, Symbol]


def read(path: Path) -> Library:
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\]", readelf("-d", path))
    wanted, defined = [], {}
    for line in readelf("--dyn-syms", path).splitlines():
        found = SYMBOL.match(line)
        if found is None:
            continue
        data = int(found["size"], 0) if found["type"] == "OBJECT" else 0
        symbol = Symbol(found["name"], found["version"] or "", data)
        if found["section"] != "UND":
            defined[symbol.name] = symbol
        elif found["bind"] != "WEAK":
            wanted.append(symbol)
    return Library(path.name, needed, version_owners(readelf("-V", path)), wanted, defined)


def version_owners(text: str) -> dict[str, str]:
    owners: dict[str, str] = {}
    owner = ""
    for line in text.splitlines():
        if file := re.search(r"\bFile: (\S+)", line):
            owner = file[1]
        elif owner and (name := re.search(r"\bName: (\S+)\s+Flags:", line)):
            owners[name[1]] = owner
    return owners


def readelf(what: str, path: Path) -> str:
    return subprocess.run(["readelf", "-W", what, path], check=True, capture_output=True, text=True).stdout
