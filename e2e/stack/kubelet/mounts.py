"""What a container has mounted: binds in the mount namespace that `ip netns exec` gives it.

A mount point that the machine doesn't have is made in memory, over the nearest folder that it has, so that nothing is
left on the machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class BadVolume(Exception):
    pass


class Mount(NamedTuple):
    source: Path
    path: Path
    read_only: bool = False


def mounting(argv: list[str], mounts: list[Mount]) -> list[str]:
    """A command that makes the mounts, then becomes the program."""
    if not mounts:
        return argv
    covers = sorted({str(_cover(mount.path)) for mount in mounts if not mount.path.exists()})
    for above in [*(Path(cover) for cover in covers), *(mount.path for mount in mounts)]:
        if any(above in mount.source.parents for mount in mounts):
            raise BadVolume(f"{above}: a mount there would hide the stack's own files")
    lines = [f"mount -t tmpfs tmpfs {cover}" for cover in covers]
    for source, path, read_only in sorted(mounts, key=lambda mount: len(mount.path.parts)):
        make = f"touch {path}" if source.is_file() else f"mkdir -p {path}"
        lines += [make if not path.exists() else f"mkdir -p {path.parent}", f"mount --bind {source} {path}"]
        if read_only:
            lines.append(f"mount -o remount,bind,ro {path}")
    return ["sh", "-ec", "\n".join([*lines, 'exec "$@"']), "sh", *argv]


def _cover(path: Path) -> Path:
    found = next(parent for parent in path.parents if parent.exists())
    if found == found.parent:
        raise BadVolume(f"{path}: no folder above it is there but the root")
    return found
