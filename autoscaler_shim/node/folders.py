"""Where a node keeps what must outlive its agent: one folder an instance, the zygotes, the models, the sockets.

Everything a restarted agent needs is in these files; each is replaced atomically, so that a reader sees a whole
one or the one before. Unix socket paths are short (108 bytes at most in the kernel): where the data folder's
name is too long, the sockets stand in a private folder of the system's temporary one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from kserve_ext.core.ids import InstanceID

MAX_SOCKET_PATH = 100


class NodeFolder:
    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.instances = self.root / "instances"
        self.zygotes = self.root / "zygotes"
        self.models = self.root / "models"
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)  # environments of instances may hold secrets
        for folder in (self.instances, self.zygotes, self.models):
            folder.mkdir(parents=True, exist_ok=True)
        # 40: room for the longest name of a socket, a zygote's
        self._sockets = self.root if len(str(self.root)) + 40 <= MAX_SOCKET_PATH else _short_folder(self.root)

    @property
    def agent_socket(self) -> Path:
        return self._sockets / "agent.sock"

    @property
    def ready_socket(self) -> Path:
        return self._sockets / "ready.sock"

    def zygote_socket(self, module: str) -> Path:
        name = module if len(module) <= 30 else hashlib.blake2b(module.encode(), digest_size=8).hexdigest()
        return self._sockets / f"z-{name}.sock"

    def instance(self, instance: InstanceID) -> Path:
        return self.instances / instance


def write_json(path: Path, facts: dict[str, Any]) -> None:
    write_bytes(path, json.dumps(facts).encode())


def write_bytes(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """{} when it is not there or not a JSON object."""
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def remove_sockets(root: Path) -> None:
    """Of a node where nothing runs any more: those outside of its folder."""
    folder = _short_path(root)
    with contextlib.suppress(OSError):
        if folder.lstat().st_uid == os.getuid():
            shutil.rmtree(folder)


def _short_path(root: Path) -> Path:
    digest = hashlib.blake2b(str(root).encode(), digest_size=6).hexdigest()
    return Path(tempfile.gettempdir()) / f"galaxy-{os.getuid()}-{digest}"


def _short_folder(root: Path) -> Path:
    folder = _short_path(root)
    folder.mkdir(mode=0o700, exist_ok=True)
    owner = folder.stat()
    if owner.st_uid != os.getuid() or owner.st_mode & 0o077:
        raise PermissionError(f"{folder} belongs to somebody else: remove it, or use a shorter data folder")
    return folder
