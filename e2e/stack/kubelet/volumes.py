"""Volumes of a pod, as far as anything here needs them: Secrets, as folders that follow what the Secret holds.

Each container has its mounts to itself, in the mount namespace that `ip netns exec` gives it. A mount point that the
machine doesn't have is made in memory, over the nearest folder that it has, so that nothing is left on the machine.
Other volumes are ignored, as limits and users are.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from e2e.stack.watch import say

Object = dict[str, Any]
#: (plural, namespace, name) -> the object, or None where there is none.
Fetch = Callable[[str, str, str], Awaitable[Object | None]]
#: The kubelet itself takes up to a minute.
EVERY_S = 2.0


class BadVolume(Exception):
    pass


class Mount(NamedTuple):
    source: Path
    path: Path


class Volumes:
    def __init__(self, pod: Object, folder: Path, fetch: Fetch) -> None:
        self._namespace: str = pod["metadata"]["namespace"]
        self._folder = folder
        self._fetch = fetch
        self._secrets: dict[str, str] = {
            volume["name"]: volume["secret"]["secretName"]
            for volume in pod["spec"].get("volumes") or []
            if "secret" in volume
        }

    def mounts(self, container: Object) -> list[Mount]:
        return [
            Mount(self._folder / mount["name"], Path(mount["mountPath"]))
            for mount in container.get("volumeMounts") or []
            if mount["name"] in self._secrets
        ]

    async def fill(self) -> None:
        for volume, name in self._secrets.items():
            found = await self._fetch("secrets", self._namespace, name)
            if found is None:
                raise BadVolume(f"volume {volume}: secret {self._namespace}/{name} not found")
            folder = self._folder / volume
            folder.mkdir(parents=True, exist_ok=True)
            for key, value in (found.get("data") or {}).items():
                _write(folder / key, base64.b64decode(value))

    async def follow(self) -> None:
        """For ever. What can't be read stays as it was."""
        while self._secrets:
            await asyncio.sleep(EVERY_S)
            try:
                await self.fill()
            except (BadVolume, OSError, aiohttp.ClientError) as error:
                say(f"volumes in {self._folder}: {error!r}")


def _write(path: Path, content: bytes) -> None:
    """Whole, or not at all."""
    if path.exists() and path.read_bytes() == content:
        return
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def mounting(argv: list[str], mounts: list[Mount]) -> list[str]:
    """A command that makes the mounts, then becomes the program."""
    if not mounts:
        return argv
    covers = sorted({str(_cover(mount.path)) for mount in mounts if not mount.path.exists()})
    lines = [f"mount -t tmpfs tmpfs {cover}" for cover in covers]
    for source, path in mounts:
        lines += [f"mkdir -p {path}", f"mount --bind {source} {path}"]
    return ["sh", "-ec", "\n".join([*lines, 'exec "$@"']), "sh", *argv]


def _cover(path: Path) -> Path:
    found = next(parent for parent in path.parents if parent.exists())
    if found == found.parent:
        raise BadVolume(f"{path}: no folder above it is there but the root")
    return found
