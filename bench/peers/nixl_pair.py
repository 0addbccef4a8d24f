"""One round of NIXL for bench/kv_peers.py: WRITEs from this process's memory into another's, sixteen under way."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections import deque
from typing import Any

from bench.peers.pair import REGION, TOTAL, WRITE, Far, address, busy_seconds, resident, say

UNDER_WAY = 16
MODULE = "bench.peers.nixl_pair"


def agent(name: str) -> tuple[Any, Any, int]:
    """As its own examples make one: with its progress thread."""
    from nixl import _api as nixl  # type: ignore[import-not-found,unused-ignore]

    made = nixl.nixl_agent(f"{name}-{os.getpid()}", nixl.nixl_agent_config(backends=["UCX"]))
    memory = resident(REGION)
    made.register_memory([(address(memory), REGION, 0, "")], "DRAM", ["UCX"])
    return made, memory, address(memory)


def far() -> None:
    """Imported, it waits for a line."""
    from nixl import _api as nixl  # type: ignore[import-not-found,unused-ignore]  # noqa: F401

    say("up")
    sys.stdin.readline()
    made, memory, at = agent("far")
    card = base64.b64encode(made.get_agent_metadata()).decode()
    say(json.dumps([card, at]))
    sys.stdin.read()
    os._exit(0 if any(memory[: 1 << 16]) else 3)


def near() -> dict[str, float]:
    from nixl import _api as nixl  # type: ignore[import-not-found,unused-ignore]  # noqa: F401

    other = Far(MODULE)
    other.hear()
    began = time.perf_counter()
    other.tell()
    made, memory, mine = agent("near")
    memory[:] = b"x" * REGION
    card, theirs = json.loads(other.hear())
    peer = made.add_remote_agent(base64.b64decode(card))
    peer = peer.decode() if isinstance(peer, bytes) else peer

    def move(size: int) -> None:
        posted: deque[Any] = deque()
        for number in range(size // WRITE):
            offset = number * WRITE % REGION
            here = made.get_xfer_descs([(mine + offset, WRITE, 0)], "DRAM")
            there = made.get_xfer_descs([(theirs + offset, WRITE, 0)], "DRAM")
            handle = made.initialize_xfer("WRITE", here, there, peer)
            made.transfer(handle)
            posted.append(handle)
            if len(posted) == UNDER_WAY:
                wait(posted.popleft())
        while posted:
            wait(posted.popleft())

    def wait(handle: Any) -> None:
        while (state := made.check_xfer_state(handle)) != "DONE":
            if state == "ERR":
                raise SystemExit("NIXL: a transfer failed")
        handle.release()

    move(WRITE)
    first_ms = (time.perf_counter() - began) * 1e3
    move(REGION)
    busy, began = busy_seconds(), time.perf_counter()
    move(TOTAL)
    took, used = time.perf_counter() - began, busy_seconds() - busy
    other.end()
    if other.process.returncode:
        raise SystemExit("NIXL: nothing has arrived")
    return {"MB/s": TOTAL / took / 1e6, "s/GiB": used / TOTAL * (1 << 30), "ms": first_ms}


if __name__ == "__main__":
    if "--far" in sys.argv:
        far()
    print(json.dumps(near()), flush=True)
    os._exit(0)  # its libraries crash in `exit`
