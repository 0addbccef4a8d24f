"""Which store this cluster has: the one that cluster.json names, else the one that the controller hosts."""

from __future__ import annotations

import json
from pathlib import Path

from kserve_ext.rpc.process import Process
from kserve_ext.rpc.rpc import Rpc
from kserve_ext.store import Store
from kserve_ext.store.location import Location
from kserve_ext.store.remote import RemoteStore


def location(data: Path, key: bytes) -> Location | None:
    """None: the controller hosts it. A password stays in the file, which is its owner's: arguments can be seen."""
    try:
        url = json.loads((data / "cluster.json").read_text()).get("store") or ""
    except FileNotFoundError:
        return None
    return Location.of(url, key) if url else None


def open_store(process: Process, rpc: Rpc) -> Store:
    """In a running loop; close() is the caller's."""
    where = location(process.data, process.key())
    if where is None:
        return RemoteStore(rpc, process.controllers[0])
    from kserve_ext.store.redis import RedisStore  # not installed where no such store is used

    return RedisStore(where)
