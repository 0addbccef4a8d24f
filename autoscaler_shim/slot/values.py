"""Whether the Secrets and ConfigMaps that the pod's variables come from are as they were when it began.

Variables of a container never change, but the kubelet keeps files up to date: so each of these objects is mounted,
too (kserve_ext/api/standby/pods.py), and nobody here needs to be allowed to read them in the API server. The files
aren't opened: the kubelet lets a link name another folder when one of them has changed, and then only.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

LOOK_S: Final = 2.0
_LINK: Final = "..data"


class Values:
    def __init__(self, folders: tuple[Path, ...]) -> None:
        """`folders`: each of one object, named KIND/NAME."""
        self._began = {folder: _version(folder) for folder in folders}

    async def changed(self) -> str:
        """Returns once something is no longer as it was: what."""
        while True:
            for folder, version in self._began.items():
                if _version(folder) != version:
                    return f"{folder.parent.name} {folder.name}, which variables come from, has changed"
            await asyncio.sleep(LOOK_S)


def _version(folder: Path) -> str:
    try:
        return os.readlink(folder / _LINK)
    except OSError:
        return ""
