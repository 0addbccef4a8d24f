"""`python -m tests.rdma.peer RUNG`: prefill as a process. Says its address, then writes blocks for ever."""

from __future__ import annotations

import itertools
import sys

from tests.rdma.channels import prefill
from tests.support.channel_ends import BLOCK, WAIT_S, Ear, extent, until


def main() -> None:
    listener, accepted = prefill()
    print(listener.addr, flush=True)
    channel = accepted.get(timeout=WAIT_S)
    ear = Ear()
    channel.start(ear, None)
    channel.use([extent(ear.memory)])
    until(lambda: channel.rungs == (sys.argv[1],))
    blocks = [ear.memory[at : at + BLOCK] for at in range(0, 8 * BLOCK, BLOCK)]
    for turn in itertools.count():
        channel.flush(1)
        place = turn % 16
        for block in blocks:
            block[:] = (
                bytes([place]) * BLOCK
            )  # what comes again is the same: nobody waits until it has been checked
        channel.write(1, 0, place * 8, blocks)


if __name__ == "__main__":
    main()
