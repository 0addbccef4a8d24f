"""Entry of a standby pod's front: `python -m activator_replacement.queue --slot-fd N --host ADDRESS`.

Started by the pod's slot, which holds the other end of the socket pair N; the front ends when that end does. The
pod's name is in the environment (POD_NAME, POD_NAMESPACE).
"""

from __future__ import annotations

# ruff: noqa: E402  the form is chosen before anything of it is imported
from activator_replacement import compiled

compiled.use()

import argparse
import asyncio
import gc
import logging
import os
import socket
import sys

import msgspec
import uvloop

from activator_replacement.queue.front import QUIET_S, Front
from kserve_ext.kube.pod import log_to_stdout, raise_open_files
from kserve_ext.wire.slot_front import ToFront

MAX_LINE_BYTES = 4 << 20


async def serve(slot_fd: int, host: str, quiet_s: float) -> None:
    slot = socket.socket(fileno=slot_fd)
    slot.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=slot, limit=MAX_LINE_BYTES)
    front = Front(os.environ.get("POD_NAME", ""), os.environ.get("POD_NAMESPACE", ""), host, quiet_s)
    front.writer = writer
    decode = msgspec.json.Decoder(ToFront).decode
    try:
        await front.start()
        gc.collect()
        gc.freeze()  # what is here now stays: no later collection has to look at it
        while line := await reader.readline():
            front.obey(decode(line))
    finally:
        front.close()
        writer.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m activator_replacement.queue", description=__doc__)
    parser.add_argument("--slot-fd", type=int, required=True, help="socket to the slot, inherited")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")
    parser.add_argument(
        "--quiet-s", type=float, default=QUIET_S, help="a hook waits until nobody came so long"
    )
    args = parser.parse_args()
    log_to_stdout("front")
    raise_open_files()
    try:
        uvloop.run(serve(args.slot_fd, args.host, args.quiet_s))
    except OSError as error:
        logging.getLogger(__name__).error("can't serve: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
