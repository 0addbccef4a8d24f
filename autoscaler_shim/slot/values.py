"""Whether the Secrets and ConfigMaps that the pod's variables come from are as they were when it began.

Variables of a container never change, but the kubelet keeps files up to date: so each of these objects is mounted,
too (kserve_ext/api/standby/pods.py), and nobody here needs to be allowed to read them in the API server. The files
aren't opened: the kubelet lets a link name another folder when one of them has changed, and then only. A link that is
younger than this process is another one than that with which its variables came.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Final

from autoscaler_shim.node.processes import start_ticks

LOOK_S: Final = 2.0
_LINK: Final = "..data"
#: A process knows when it began to a hundredth of a second, and files have their times from a clock as coarse.
_COARSE_S: Final = 0.1


class Values:
    def __init__(self, folders: tuple[Path, ...], began: float | None = None) -> None:
        """`folders`: each of one object, named KIND/NAME; `began`: when this process did, in unix seconds."""
        began = _began() if began is None else began
        self._began = {folder: None if _is_younger(folder, began) else _version(folder) for folder in folders}

    async def changed(self) -> str:
        """Returns once something is no longer as it was: what."""
        while True:
            for folder, version in self._began.items():
                if _version(folder) != version:
                    return f"{folder.parent.name} {folder.name}, which variables come from, has changed"
            await asyncio.sleep(LOOK_S)


def _began() -> float:
    ticks = start_ticks(os.getpid())
    if ticks is None:
        return time.time()
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def _is_younger(folder: Path, began: float) -> bool:
    try:
        return (folder / _LINK).lstat().st_mtime > began + _COARSE_S
    except OSError:
        return False


def _version(folder: Path) -> str:
    try:
        return os.readlink(folder / _LINK)
    except OSError:
        return ""
