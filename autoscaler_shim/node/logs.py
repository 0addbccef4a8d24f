"""What an instance prints: one file an instance, bounded in size, readable while it grows.

The processes write to the file themselves (opened for append), so that no pipe ties them to the agent. A file
past the bound is kept once as `log.1` and emptied; what is printed in that moment may be lost.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

MAX_BYTES = 16 * 1024 * 1024
TAIL_BYTES = 64 * 1024


def bound(path: Path, max_bytes: int = MAX_BYTES) -> bool:
    """Empties the log when it is past the bound. True if it was."""
    try:
        if path.stat().st_size <= max_bytes:
            return False
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        os.truncate(path, 0)
    except OSError:
        return False
    return True


def tail(path: Path, lines: int = 200, max_bytes: int = TAIL_BYTES) -> str:
    """The last lines, whole ones; goes back into `log.1` when the log was emptied a moment ago."""
    text = _end_of(path, max_bytes)
    if text.count("\n") < lines and len(text) < max_bytes:
        text = _end_of(path.with_name(f"{path.name}.1"), max_bytes - len(text)) + text
    return "\n".join(text.splitlines()[-lines:])


def last_words(path: Path, max_chars: int = 400) -> str:
    """The end of the log in one line, for a reason."""
    words = [line.strip() for line in tail(path, 5, 4096).splitlines() if line.strip()]
    return " | ".join(words)[-max_chars:]


def _end_of(path: Path, max_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            data = file.read(max_bytes)
    except OSError:
        return ""
    if size > max_bytes:
        data = data.partition(b"\n")[2]
    return data.decode(errors="replace")
