"""Runs other programs for set-up: output goes to a log file, and a failure shows the end of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.setup.layout import Layout
from tools.setup.steps import SetupError

SHOWN_LINES = 15


def run(
    command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        done = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            check=False,
            close_fds=False,  # The set-up's lock stays held until this program has ended, whatever ends us.
        )
    if done.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LINES:]
        shown = "\n  ".join(tail)
        raise SetupError(
            f"`{Path(command[0]).name}` failed with status {done.returncode}:\n  {shown}\n(all of it: {log})"
        )


def pip(layout: Layout, log: str, *words: str | Path, python: Path | None = None) -> None:
    """The installer's pip on its own Python or on another, with the user's index settings."""
    shutil.rmtree(layout.scratch, ignore_errors=True)
    layout.scratch.mkdir(parents=True)
    env = {
        "TMPDIR": str(layout.scratch),
        "PIP_NO_CACHE_DIR": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_USER": "0",
    }
    installer = layout.installer / "bin" / "python"
    # By its folder rather than with `--python`, which would put a process between us and the one that works.
    program = next(layout.installer.glob("lib/python*/site-packages/pip"))
    command = [python or installer, program, *words]
    try:
        run(command, layout.log / f"{log}.log", env=env, cwd=layout.cache)
    except SetupError as error:
        remedy = (
            "If the index was out of reach, try again: what is complete is kept. Other index: PIP_INDEX_URL."
        )
        raise SetupError(f"{error}\n{remedy}") from None
    finally:
        shutil.rmtree(layout.scratch, ignore_errors=True)
