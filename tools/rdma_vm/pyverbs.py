"""Debian's pyverbs, in a folder of its own in the cache, for Python 3.11 from anywhere.

Its modules are built for CPython 3.11's ABI, so they run in any 3.11. Installing the package itself would bring in
rdma-core and with it upgrades of systemd: only the folder is wanted. The libraries below it (libibverbs and the
driver of soft-RoCE) are the machine's own; what is missing of them is named.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import sys
from pathlib import Path

from tools.rdma_vm import debian, kernel
from tools.setup import steps
from tools.setup.layout import Layout
from tools.setup.steps import SetupError

PACKAGE = "python3-pyverbs"
DRIVER = "ibverbs-providers"


def folder(layout: Layout) -> Path:
    """To be put on PYTHONPATH."""
    return kernel.folder(layout) / "pyverbs"


def bring(layout: Layout) -> Path:
    target = folder(layout)
    if sys.version_info[:2] != (3, 11):
        raise SetupError(f"{PACKAGE} is built for Python 3.11, this is {sys.version.split()[0]}")
    require_libraries()
    step = steps.Step(f"pyverbs ({PACKAGE})", target.exists, lambda: _fetch(target, layout))
    steps.run([step], kernel.folder(layout) / "lock")
    return target


def require_libraries() -> None:
    wanted = {"libibverbs1": "ibverbs", "librdmacm1": "rdmacm"}
    missing = [package for package, name in wanted.items() if ctypes.util.find_library(name) is None]
    if not any(Path("/usr").glob("lib*/*/libibverbs/librxe-rdmav*.so")):
        missing.append(DRIVER)
    if missing:
        raise SetupError(
            f"verbs need {', '.join(missing)}: apt install --no-install-recommends {' '.join(missing)}"
        )


def _fetch(target: Path, layout: Layout) -> None:
    kernel.require({"apt-get": "apt", "dpkg-deb": "dpkg"}, "fetching pyverbs")
    work = target.with_suffix(".partial")
    content = debian.unpack(PACKAGE, work, layout.log / "rdma-pyverbs.log")
    (work / "folder").mkdir()
    shutil.move(content / "usr/lib/python3/dist-packages/pyverbs", work / "folder/pyverbs")
    os.replace(work / "folder", target)
    shutil.rmtree(work)
