"""`python -m tests.transport.nixl.peer`: prefill as a process. Says its address, then writes blocks for ever."""

from __future__ import annotations

import itertools
import os

from tests.support.channel_ends import BLOCK, WAIT_S, Ear, extent, until
from tests.transport.nixl.channels import prefill

ROUND = 8  # writes before a place is written again, by when its blocks have landed


def main() -> None:
    listener, accepted = prefill()
    print(listener.addr, flush=True)
    channel = accepted.get(timeout=WAIT_S)
    ear = Ear()
    channel.start(ear, None)
    channel.use([extent(ear.memory)])
    until(lambda: channel.rungs == ("nixl",))
    blocks = [ear.memory[at : at + BLOCK] for at in range(0, 8 * BLOCK, BLOCK)]
    try:
        for turn in itertools.count(1):
            channel.flush(1)
            if turn > ROUND and ear.next()[0] == "lost":
                break
            for block in blocks:
                block[:] = bytes([turn % 255 + 1]) * BLOCK
            channel.write(1, 0, turn % ROUND * len(blocks), blocks)
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
