"""One round of the Mooncake transfer engine for bench/kv_peers.py: writes over its tcp, sixteen in a batch."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from bench.peers.pair import REGION, TOTAL, WRITE, Far, address, busy_seconds, resident, say

TOGETHER = 16
MODULE = "bench.peers.mooncake_pair"


def engine() -> tuple[Any, Any]:
    from mooncake.engine import TransferEngine  # type: ignore[import-not-found,unused-ignore]

    made = TransferEngine()
    if made.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", ""):
        raise SystemExit("Mooncake does not start")
    memory = resident(REGION)
    if made.register_memory(address(memory), REGION):
        raise SystemExit("Mooncake registers no memory")
    return made, memory


def far() -> None:
    """Imported, it waits for a line."""
    from mooncake.engine import TransferEngine  # type: ignore[import-not-found,unused-ignore]  # noqa: F401

    say("up")
    sys.stdin.readline()
    made, memory = engine()
    say(json.dumps([f"127.0.0.1:{made.get_rpc_port()}", address(memory)]))
    sys.stdin.read()
    os._exit(0 if any(memory[: 1 << 16]) else 3)


def near() -> dict[str, float]:
    from mooncake.engine import TransferEngine  # type: ignore[import-not-found,unused-ignore]  # noqa: F401

    other = Far(MODULE)
    other.hear()
    began = time.perf_counter()
    other.tell()
    made, memory = engine()
    mine = address(memory)
    memory[:] = b"x" * REGION
    name, theirs = json.loads(other.hear())

    def move(size: int) -> None:
        for number in range(0, size // WRITE, TOGETHER):
            offsets = [(number + k) * WRITE % REGION for k in range(min(TOGETHER, size // WRITE - number))]
            here, there = [mine + offset for offset in offsets], [theirs + offset for offset in offsets]
            if made.batch_transfer_sync_write(name, here, there, [WRITE] * len(offsets)):
                raise SystemExit("Mooncake: a transfer failed")

    move(WRITE)
    first_ms = (time.perf_counter() - began) * 1e3
    move(REGION)
    busy, began = busy_seconds(), time.perf_counter()
    move(TOTAL)
    took, used = time.perf_counter() - began, busy_seconds() - busy
    other.end()
    if other.process.returncode:
        raise SystemExit("Mooncake: nothing has arrived")
    return {"MB/s": TOTAL / took / 1e6, "s/GiB": used / TOTAL * (1 << 30), "ms": first_ms}


if __name__ == "__main__":
    if "--far" in sys.argv:
        far()
    print(json.dumps(near()), flush=True)
    os._exit(0)
