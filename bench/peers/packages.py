"""Peers that are Python packages: each in a folder of its own in the cache, never in the project's environment.

Versions are pinned here. What a package says it needs besides is not installed: numpy is all that NIXL takes of it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from tools.setup import commands, steps
from tools.setup.layout import Layout

#: Name of the folder -> requirements; sizes are installed ones.
PACKAGES: Final = {
    "nixl": ("nixl==1.5.1", "nixl-cu12==1.5.1"),  # 241 MB
    "ucx": ("libucx-cu12==1.22.0",),  # 146 MB
    "mooncake": ("mooncake-transfer-engine-non-cuda==0.3.13.post1",),  # 141 MB
}


def folder(name: str, layout: Layout | None = None) -> Path:
    """To be put on PYTHONPATH; it is there once `bring` has brought it."""
    words = (each.replace("==", "-") for each in PACKAGES[name])
    return (layout or Layout.of_user()).cache / "bench" / "+".join(words)


def bring(name: str) -> Path:
    """Raises SetupError."""
    layout = Layout.of_user()
    target = folder(name, layout)
    target.parent.mkdir(parents=True, exist_ok=True)
    step = steps.Step(f"fetching {name}", target.exists, lambda: _fetch(name, target, layout))
    steps.run([step], layout.cache / "bench" / "lock")
    return target


def _fetch(name: str, target: Path, layout: Layout) -> None:
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    words: tuple[str | Path, ...] = (
        "install",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--target",
        partial,
        *PACKAGES[name],
    )
    commands.pip(layout, f"peer-{name}", *words)
    os.replace(partial, target)
