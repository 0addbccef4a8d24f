"""What the zygote imports."""

from __future__ import annotations

import importlib


def preimport() -> None:
    importlib.import_module("tests.support.sleeping_runtime.server")
