"""`python -m tests.rdma.peer`: prefill as a process of its own. Says its address, then writes blocks for ever."""

from __future__ import annotations

import itertools

from tests.rdma.channels import BLOCK, WAIT_S, Ear, prefill


def main() -> None:
    listener, accepted = prefill()
    print(listener.addr, flush=True)
    channel = accepted.get(timeout=WAIT_S)
    channel.start(Ear(1), None)
    for turn in itertools.count():
        block = bytes([turn % 256]) * BLOCK
        channel.write(1, 0, turn % 16 * 8, [memoryview(block)] * 8)


if __name__ == "__main__":
    main()
