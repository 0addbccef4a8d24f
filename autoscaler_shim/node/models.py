"""The node's model cache: a copy of each model on this node's own disk, shared by all services that use it.

A Preloader. One fetch at a time for a model, however many ask; a copy appears under its name only when it is
complete and on disk. Copies, not hard links: a model that is overwritten in place would change under a running
engine that has it mapped; where the file system can share blocks (reflink) the copy costs nothing. Past the
bound the copies unused for longest go; what an instance uses stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from autoscaler_shim.node.folders import remove, write_bytes
from autoscaler_shim.node.model_files import File, ModelMissing, check, manifest
from kserve_ext.core.facts import Model
from kserve_ext.fluid.preload import ModelUnavailable, Near, Progress

log = logging.getLogger(__name__)

CHUNK = 8 * 1024 * 1024
FICLONE = 0x40049409
Report = Callable[[Progress], None]


class Copy(NamedTuple):
    """One complete copy in the cache; what its .json says."""

    key: str
    source: str
    files: tuple[File, ...]
    bytes: int
    used_at: float


class ModelCache:
    def __init__(self, folder: Path, max_bytes: int, changed: Callable[[], None] = lambda: None) -> None:
        self.folder, self.max_bytes, self.changed = folder, max_bytes, changed
        folder.mkdir(parents=True, exist_ok=True)
        #: complete copies, by the name of their folder
        self.copies: dict[str, Copy] = {}
        self._users: dict[str, str] = {}  # holder -> name
        self._fetches: dict[str, asyncio.Task[Near]] = {}
        self._listeners: dict[str, list[Report]] = {}
        self._progress: dict[str, Progress] = {}
        self._closing = threading.Event()
        self._find()

    async def fetch(self, model: Model, progress: Report) -> Near:
        task = self._fetches.get(model.key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._fetch(model))
            self._fetches[model.key] = task
            task.add_done_callback(lambda t: self._fetched(model.key, t))
        self._listeners.setdefault(model.key, []).append(progress)
        return await asyncio.shield(task)

    def keep(self, holder: str, folder: Path) -> None:
        if folder.parent == self.folder and folder.name in self.copies:
            self._users[holder] = folder.name
            self._touch(folder.name)

    def let_go(self, holder: str) -> None:
        name = self._users.pop(holder, None)
        if name in self.copies:
            self._touch(name)

    def held(self) -> tuple[str, ...]:
        return tuple(sorted({copy.key for copy in self.copies.values()}))

    def under_way(self) -> dict[str, Progress]:
        return dict(self._progress)

    def close(self) -> None:
        """Ends copies under way; what they have is removed at the next start."""
        self._closing.set()
        for task in self._fetches.values():
            task.cancel()

    # --- fetching

    async def _fetch(self, model: Model) -> Near:
        source = Path(model.path)
        try:
            files = await asyncio.to_thread(manifest, source)
        except (ModelMissing, ModelUnavailable) as error:
            source_of = {(copy.key, copy.source): name for name, copy in self.copies.items()}
            kept = source_of.get((model.key, model.path))
            if kept is None:
                raise
            log.warning("%s: its source is away (%s), the copy in the cache is used", model.key, error)
            return Near(self.folder / kept, f"cached; its source is away: {error}")
        name = _name(model, files)
        if name in self.copies:
            self._touch(name)
            return Near(self.folder / name, "cached")
        await asyncio.to_thread(check, source, files)
        size = sum(file.size for file in files)
        self._make_room(model, size)
        self._progress[model.key] = Progress(0, size)
        loop = asyncio.get_running_loop()
        began = loop.time()

        def report(done: int) -> None:
            loop.call_soon_threadsafe(self._tell, model.key, Progress(done, size))

        try:
            shared = await asyncio.to_thread(self._copy, source, name, files, report)
        except OSError as error:
            raise ModelUnavailable(f"{model.key} can't be copied to {self.folder}: {error}") from error
        copy = Copy(model.key, model.path, files, size, time.time())
        write_bytes(self.folder / f"{name}.json", msgspec.json.encode(copy))
        self.copies[name] = copy
        self.changed()
        how = "shared blocks" if shared else "copied"
        return Near(self.folder / name, f"{how}, {size} bytes in {loop.time() - began:.2f} s")

    def _copy(self, source: Path, name: str, files: tuple[File, ...], report: Callable[[int], None]) -> bool:
        """In a thread: to a temporary folder, flushed to disk, verified, renamed. True: all blocks are shared."""
        partial = self.folder / f".{name}.partial"
        remove(partial)
        done, shared = 0, True
        for file in files:
            target = partial / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with (source / file.name).open("rb") as reader, target.open("wb") as writer:
                if not _share_blocks(reader.fileno(), writer.fileno()):
                    shared = False
                    copied = 0
                    while count := os.sendfile(writer.fileno(), reader.fileno(), copied, CHUNK):
                        copied += count
                        report(done + copied)
                        if self._closing.is_set():
                            raise OSError("the node agent ends")
                os.fsync(writer.fileno())
            if target.stat().st_size != file.size:
                raise OSError(f"{source / file.name} changed while it was copied")
            done += file.size
            report(done)
        final = self.folder / name
        remove(final)
        partial.rename(final)
        folder = os.open(self.folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        return shared

    def _fetched(self, key: str, task: asyncio.Task[Near]) -> None:
        del self._fetches[key]
        self._listeners.pop(key, None)
        self._progress.pop(key, None)
        if not task.cancelled():
            task.exception()  # those who asked have it too, unless they all went away

    def _tell(self, key: str, progress: Progress) -> None:
        if key in self._progress:
            self._progress[key] = progress
            for listener in self._listeners.get(key, ()):
                listener(progress)

    # --- bound

    def _make_room(self, model: Model, size: int) -> None:
        coming = sum(p.total for p in self._progress.values())
        for name in victims(self.copies, set(self._users.values()), size + coming, self.max_bytes):
            log.info("model cache: %s goes, unused for longest", self.copies[name].key)
            (self.folder / f"{name}.json").unlink(missing_ok=True)
            del self.copies[name]
            remove(self.folder / name)
            self.changed()
        held = sum(copy.bytes for copy in self.copies.values()) + coming
        disk = shutil.disk_usage(self.folder).free
        if held + size > self.max_bytes or size > disk:
            raise ModelUnavailable(
                f"{model.key} has {size} bytes; the model cache {self.folder} has "
                f"{max(0, min(self.max_bytes - held, disk))} left (bound {self.max_bytes}): raise the bound "
                "(--model-cache), or stop services whose models are in use"
            )

    def _touch(self, name: str) -> None:
        self.copies[name] = copy = self.copies[name]._replace(used_at=time.time())
        write_bytes(self.folder / f"{name}.json", msgspec.json.encode(copy))

    def _find(self) -> None:
        """What an earlier agent has left: complete copies are kept, the rest goes."""
        for file in self.folder.glob("*.json"):
            with contextlib.suppress(msgspec.MsgspecError, OSError):
                copy = msgspec.json.decode(file.read_bytes(), type=Copy)
                if all((self.folder / file.stem / f.name).is_file() for f in copy.files):
                    self.copies[file.stem] = copy
        for entry in self.folder.iterdir():
            if entry.stem not in self.copies and entry.name not in self.copies:
                remove(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


def victims(copies: dict[str, Copy], in_use: set[str], size: int, bound: int) -> list[str]:
    """Which copies go so that `size` more bytes stay within the bound: unused for longest first."""
    held = sum(copy.bytes for copy in copies.values())
    out: list[str] = []
    for name in sorted(copies, key=lambda n: (copies[n].used_at, n)):
        if held + size <= bound:
            break
        if name not in in_use:
            held -= copies[name].bytes
            out.append(name)
    return out if held + size <= bound else []


def _name(model: Model, files: tuple[File, ...]) -> str:
    """One state of one model: a readable part and a digest."""
    digest = hashlib.blake2b(repr((model.key, model.path, files)).encode(), digest_size=8).hexdigest()
    readable = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(model.path).name)[:40]
    return f"{readable or 'model'}-{digest}"


def _share_blocks(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError:
        return False
    return True
