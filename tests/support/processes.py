"""Whether a process lives, as far as a test cares: one that has ended and was not waited for does not.

Whoever takes over an orphan waits for it sooner or later, or, as the first process of a plain container, never.
"""

from __future__ import annotations

from pathlib import Path


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
