"""What the zygote imports: FAKE_IMPORT_FAILS in its environment kills it, FAKE_IMPORT_UNTIL keeps it at it
until that file is there."""

from __future__ import annotations

import http.server
import os
import time


def preimport() -> None:
    assert http.server
    until = os.environ.get("FAKE_IMPORT_UNTIL")
    while until and not os.path.exists(until):
        time.sleep(0.02)
    if os.environ.get("FAKE_IMPORT_FAILS"):
        raise ImportError("asked to fail")
