"""What the zygote imports. With FAKE_IMPORT_FAILS in its environment the zygote dies of it."""

from __future__ import annotations

import http.server
import os


def preimport() -> None:
    assert http.server
    if os.environ.get("FAKE_IMPORT_FAILS"):
        raise ImportError("asked to fail")


def assert_forkable() -> None:
    pass
