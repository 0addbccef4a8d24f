"""What the zygote imports."""

from __future__ import annotations

import importlib


def preimport() -> None:
    importlib.import_module("bench.peers.tiny_runtime.server")
