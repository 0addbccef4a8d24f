"""What a revision has left in its pod's files goes before another revision is served there, or the pod does.

Remembered is what lies in the pod's own writable places once its base stands. After a revision what is new there is
deleted, and so is what has changed: such places hold caches and temporary files, and nothing that can't be made anew.
Elsewhere in the container nothing can be put back, since nobody knows what it was; there it is only looked whether
something was written, and then the pod has to be replaced. Volumes that other pods have, too (claims, hostPath), are
left as they are.

Whoever is not the first process of a container of its own (tests, a kubelet's stand-in) has places that are others'
as well: then only those count that it is told of.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

#: Of every container; some images have more of them than others.
PLACES: Final = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run/lock")
#: Below HOME.
HOME_PLACES: Final = (".cache", ".config", ".triton", ".nv", ".local/share")
#: Mounted into each container by a kubelet, and by nobody else.
KUBELETS: Final = "/dev/termination-log"
#: How often what is found after cleaning is cleaned again: what was killed may have been in the middle of a write.
ROUNDS: Final = 3
#: Longest search of the rest of a container, in seconds.
SEARCH_S: Final = 20.0
_NAMED: Final = 3
#: CLOCK_REALTIME_COARSE, which files get their times from; Python doesn't name it.
_COARSE: Final = 5
_IPC: Final = ("shm", "sem", "msg")


class Entry(NamedTuple):
    device: int
    inode: int
    kind: int
    size: int
    changed_ns: int


class Left(Exception):
    """What can't be cleaned, for a person."""


class Scratch:
    """`remember`, then `clean` after each revision. Both block."""

    def __init__(
        self,
        scratch: Iterable[Path],
        shared: Iterable[Path] = (),
        without: Iterable[Path] = (),
        own: Callable[[], bool] | None = None,
    ) -> None:
        """`scratch`: folders that are the pod's alone; `shared`: where it has mounted what isn't; `without`: files
        that are the slot's; `own`: whether all else in the container is the pod's, too."""
        self._own = (own or in_own_container)()
        self._shared_names = not self._own and in_shared_container()
        theirs = {str(path) for path in shared}
        found = [*scratch]
        if self._own:
            found += [path for path in _of_container(os.environ) if not _within(str(path), theirs)]
        self._places = _outermost(found)
        places = {str(place) for place in self._places}
        #: Not entered: other volumes, and whatever else is mounted below a place.
        self._without = {*map(str, without), *theirs, *(_mounts() - places)}
        self._before: Mapping[str, Entry] = {}
        self._ipc: frozenset[tuple[str, int]] = frozenset()
        self._since_ns = 0

    def remember(self) -> None:
        """All that is there is the base's."""
        self._before = self._entries()
        self._ipc = _ipc() if self._own else frozenset()
        self._since_ns = time.clock_gettime_ns(_COARSE)

    def clean(self) -> int:
        """How many files and folders were deleted, those below them not counted. Raises Left."""
        if self._shared_names:
            raise Left(
                "other processes run in its container (shareProcessNamespace), and whose is what isn't known"
            )
        deleted = 0
        for _ in range(ROUNDS):
            found = self._new()
            if not found:
                break
            deleted += len(found)
            for path in found:
                _delete(path)
        left = self._new()
        if left:
            raise Left(f"{_some(left)} can't be deleted")
        for kind, number in (_ipc() if self._own else frozenset()) - self._ipc:
            _remove_ipc(kind, number)
        if self._own and (written := self._written_elsewhere()):
            raise Left(f"{_some(written)} was written, where nothing can be put back")
        return deleted

    # --- inside

    def _entries(self) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for place in self._places:
            for entry in _walk(str(place), None, self._without):
                with contextlib.suppress(FileNotFoundError):
                    found[entry.path] = _entry(entry.stat(follow_symlinks=False))
        return found

    def _new(self) -> list[str]:
        """The outermost of what is new or otherwise, by path."""
        found: list[str] = []
        for path, entry in sorted(self._entries().items()):
            if found and path.startswith(found[-1] + "/"):
                continue
            before = self._before.get(path)
            same = before is not None and (
                before == entry or (stat.S_ISDIR(entry.kind) and _is(before, entry))
            )
            if not same:
                found.append(path)
        return found

    def _written_elsewhere(self) -> list[str]:
        """Below the root, without other mounts and those places, what is not older than what is remembered."""
        root = os.lstat("/")
        if os.statvfs("/").f_flag & os.ST_RDONLY:
            return []
        found: list[str] = []
        until = time.monotonic() + SEARCH_S
        skipped = {*map(str, self._places), *self._without}
        for entry in _walk("/", root.st_dev, skipped):
            with contextlib.suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_ctime_ns >= self._since_ns and not _parent(
                    entry.path, skipped
                ):
                    found.append(entry.path)
            if len(found) > _NAMED:
                break
            if time.monotonic() > until:
                raise Left(f"the container can't be searched within {SEARCH_S:g} s: it has too many files")
        return found


def in_own_container() -> bool:
    """Nobody else's files can be here: the first process, and a kubelet has made this mount namespace."""
    return os.getpid() == 1 and os.path.ismount(KUBELETS)


def in_shared_container() -> bool:
    """A kubelet's, but others run in it, too (shareProcessNamespace)."""
    return os.getpid() != 1 and os.path.ismount(KUBELETS)


def _of_container(environ: Mapping[str, str]) -> list[Path]:
    places = [*PLACES, *(environ.get(name, "") for name in ("TMPDIR", "XDG_CACHE_HOME", "VLLM_CACHE_ROOT"))]
    home = environ.get("HOME", "")
    if home.startswith("/") and home != "/":
        places += [f"{home}/{below}" for below in HOME_PLACES]
    return [Path(place) for place in places if place.startswith("/") and place != "/"]


def _within(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder + "/") for folder in folders)


def _mounts() -> set[str]:
    """Points at which something is mounted."""
    with open("/proc/self/mountinfo") as file:
        return {line.split()[4].replace("\\040", " ") for line in file}


def _outermost(places: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for place in sorted({place.resolve() for place in places}, key=lambda place: len(place.parts)):
        if not any(other in place.parents for other in found):
            found.append(place)
    return found


def _walk(folder: str, device: int | None = None, without: Iterable[str] = ()) -> Iterable[os.DirEntry[str]]:
    """All below it, links not followed, other devices neither, and not those folders."""
    below = [folder]
    while below:
        try:
            with os.scandir(below.pop()) as entries:
                found = list(entries)
        except OSError:  # gone, or another user's: its own entry says enough
            continue
        for entry in found:
            if entry.path in without:
                continue
            if entry.is_dir(follow_symlinks=False):
                try:
                    other = device is not None and entry.stat(follow_symlinks=False).st_dev != device
                except OSError:
                    continue
                if other:
                    continue
                below.append(entry.path)
            yield entry


def _entry(found: os.stat_result) -> Entry:
    return Entry(found.st_dev, found.st_ino, found.st_mode, found.st_size, found.st_ctime_ns)


def _is(one: Entry, other: Entry) -> bool:
    """A folder changes with what is in it."""
    return (one.device, one.inode, one.kind) == (other.device, other.inode, other.kind)


def _parent(path: str, places: Iterable[str]) -> bool:
    """A folder changes with the places in it."""
    return any(place.startswith(path + "/") for place in places)


def _delete(path: str) -> None:
    """As far as it can be; links are not followed."""
    with contextlib.suppress(OSError):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return
    _open(path)
    for folder, below, _ in os.walk(path):
        for name in below:
            _open(os.path.join(folder, name))
    shutil.rmtree(path, ignore_errors=True)


def _open(folder: str) -> None:
    """Whoever made it may have forbidden it to itself."""
    with contextlib.suppress(OSError):
        if not os.path.islink(folder):
            os.chmod(folder, 0o700)


def _some(paths: list[str]) -> str:
    named = ", ".join(paths[:_NAMED])
    return f"{named} and more" if len(paths) > _NAMED else named


def _ipc() -> frozenset[tuple[str, int]]:
    """System V's."""
    found = set()
    for kind in _IPC:
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]:
                found.add((kind, int(line.split()[1])))
    return frozenset(found)


def _remove_ipc(kind: str, number: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if kind == "sem":
        libc.semctl(number, 0, 0)
    else:
        getattr(libc, f"{kind}ctl")(number, 0, None)
