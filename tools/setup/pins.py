"""Lock files: one `name==version --hash=sha256:...` a line. Reads them, writes them; never resolves anything."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

LINE = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[\w.+!]+) --hash=sha256:(?P<sha256>[0-9a-f]{64})")


class Pin(NamedTuple):
    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


def normal(name: str) -> str:
    """The one spelling of a package's name that an index compares."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read(locks: Iterable[Path]) -> dict[str, Pin]:
    """Pins by normal name. A package that two lock files pin differently is refused."""
    pins: dict[str, Pin] = {}
    for lock in locks:
        for number, line in enumerate(lock.read_text(encoding="utf-8").splitlines(), 1):
            if not line or line.startswith("#"):
                continue
            found = LINE.fullmatch(line)
            if found is None:
                raise ValueError(
                    f"{lock.name} line {number}: expected `name==version --hash=sha256:...`, found {line!r}"
                )
            pin = Pin(**found.groupdict())
            if pins.setdefault(normal(pin.name), pin) != pin:
                raise ValueError(
                    f"{lock.name} line {number}: {pin.name} is pinned differently in another lock file"
                )
    return pins


def rewrite(lock: Path, hashes: Mapping[tuple[str, str], str]) -> str:
    """The lock file's text with the hash of each (normal name, version) that `hashes` knows."""
    lines = []
    for line in lock.read_text(encoding="utf-8").splitlines():
        wanted = re.match(r"([\w.-]+)==([\w.+!]+)", line)
        sha256 = hashes.get((normal(wanted[1]), wanted[2])) if wanted else None
        lines.append(str(Pin(wanted[1], wanted[2], sha256)) if wanted and sha256 else line)
    return "\n".join(lines) + "\n"


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
