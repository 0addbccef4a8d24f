"""What the programs of bench/kv_peers.py have in common: how much is moved, memory that is there, and the other
process.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
WRITE: Final = MIB
REGION: Final = 64 * MIB
TOTAL: Final = 1536 * MIB
_OURS: Final = "bench: "
_POPULATE: Final = 23  # MADV_POPULATE_WRITE


def resident(size: int) -> mmap.mmap:
    made = mmap.mmap(-1, size)
    made.madvise(_POPULATE)
    return made


def address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def busy_seconds() -> float:
    """Of the machine so far: the kernel works for both sides, in nobody's time."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / 100


def say(text: str) -> None:
    """To the process that has started this one."""
    print(f"{_OURS}{text}", flush=True)


class Far:
    """The other process: the same program with --far. Lines of text go both ways."""

    def __init__(self, module: str) -> None:
        command = [sys.executable, "-m", module, "--far"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def hear(self) -> str:
        """Its next line, apart from what a library prints between them."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith(_OURS):
                return line.removeprefix(_OURS).strip()
        raise SystemExit(f"the other process has ended with status {self.process.wait()}")

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
