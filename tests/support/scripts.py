"""Golden scripts: blocks of a command, a line of four dashes, and what came of it; `#` lines are for readers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def played(script: Path, run: Callable[[str], str]) -> str:
    """The script with what its commands say now."""
    out = []
    lines = iter(script.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if not line.strip():
            continue
        if line.startswith("#"):
            out.append(f"{line}\n")
            continue
        out.append(f"{line}\n----\n{run(line)}\n")
        for rest in lines:  # the former output
            if not rest.strip():
                break
    return "".join(out).rstrip() + "\n"
