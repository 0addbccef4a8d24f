"""The embedded store on disk: an append-only file of writes, replaced by a snapshot when it has grown too long.

A record is length, CRC-32 and MessagePack of [revision, [[key, value, revision], ...]]; a torn tail (killed in
mid-write) is cut off. A write is recorded before it is applied, and with the operating system before it is
acknowledged, so that killing the process loses nothing; the owner forces it to the disk with syncing(). The file
`life` beside it names what is kept: a journal that is made anew gets another one, so that who wrote to the former can
tell (behind.py).
"""

from __future__ import annotations

import logging
import os
import secrets
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from kserve_ext.store.memory import Change, Memory

log = logging.getLogger(__name__)

_HEAD = struct.Struct("<II")
_COMPACT_AT_BYTES = 4 * 1024 * 1024
_encode = msgspec.msgpack.encode
_Record = tuple[int, list[tuple[str, bytes | None, int]]]


class Journal:
    """A Memory with a file behind it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "journal"
        self.memory = Memory()
        self.cut_bytes = self._replay()
        self.life = self._life(folder / "life")
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._file).st_size
        self._live_size = self._size
        self._dirty = False

    def put(self, items: list[tuple[str, bytes | None]]) -> list[Change]:
        """Records and applies the writes; when they can't be recorded, nothing has changed. Raises OSError."""
        changes = self.memory.changes_of(items)
        if changes:
            self._append(changes)
            self.memory.apply(changes)
            if self._size > _COMPACT_AT_BYTES and self._size > 4 * self._live_size:
                try:
                    self._compact()
                except OSError as error:
                    log.error("%s can't be compacted, it grows on: %s", self.path, error)
                    self._live_size = self._size
        return changes

    def syncing(self) -> Callable[[], None] | None:
        """What forces all writes up to now to the disk, for any thread to call once; None = they are there."""
        if not self._dirty:
            return None
        self._dirty = False
        return partial(_sync_and_close, os.dup(self._file))  # compaction may close ours meanwhile

    def close(self) -> None:
        os.fdatasync(self._file)
        os.close(self._file)

    # --- inside

    def _append(self, changes: list[Change]) -> None:
        data = _record(changes[-1].revision, changes)
        written = os.write(self._file, data)
        if written != len(data):
            os.ftruncate(self._file, self._size)  # else what follows would be behind a torn record
            raise OSError(f"{self.path}: wrote {written} of {len(data)} bytes (is the disk full?)")
        self._size += len(data)
        self._dirty = True

    def _life(self, file: Path) -> str:
        if self.memory.revision and file.exists():
            return file.read_text()
        life = secrets.token_hex(8)
        file.write_text(life)
        return life

    def _replay(self) -> int:
        """Reads the file; the number of bytes of a torn tail that were cut off."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return 0
        values: dict[str, tuple[bytes, int]] = {}
        at = revision = 0
        while len(data) - at >= _HEAD.size:
            length, crc = _HEAD.unpack_from(data, at)
            body = data[at + _HEAD.size : at + _HEAD.size + length]
            if len(body) < length or zlib.crc32(body) != crc:
                break
            revision, writes = msgspec.msgpack.decode(body, type=_Record)
            for key, value, written_at in writes:
                if value is None:
                    values.pop(key, None)
                else:
                    values[key] = (value, written_at)
            at += _HEAD.size + length
        self.memory.restore(revision, [(k, v, r) for k, (v, r) in values.items()])
        if at < len(data):
            os.truncate(self.path, at)
        return len(data) - at

    def _compact(self) -> None:
        """Writes what is live to a new file and puts it in the old one's place."""
        fresh = self.path.with_name("journal.partial")
        writes: list[tuple[str, bytes | None, int]] = [*self.memory.scan("")]
        data = _record(self.memory.revision, writes)
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)
        os.close(self._file)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self._size = self._live_size = len(data)


def _sync_and_close(file: int) -> None:
    try:
        os.fdatasync(file)
    finally:
        os.close(file)


def _record(revision: int, writes: Sequence[tuple[str, bytes | None, int]]) -> bytes:
    body = _encode((revision, writes))
    return _HEAD.pack(len(body), zlib.crc32(body)) + body
