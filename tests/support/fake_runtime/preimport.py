"""What the zygote imports: FAKE_IMPORT_FAILS in its environment kills it, FAKE_IMPORT_SECONDS keeps it at it."""

from __future__ import annotations

import http.server
import os
import time


def preimport() -> None:
    assert http.server
    time.sleep(float(os.environ.get("FAKE_IMPORT_SECONDS", "0")))
    if os.environ.get("FAKE_IMPORT_FAILS"):
        raise ImportError("asked to fail")


def assert_forkable() -> None:
    pass
