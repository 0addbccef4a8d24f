"""Connections that only exist: `python -m bench.peers.connections HOST:PORT REVISION COUNT idle|held`.

idle: each has had one answer and is kept; held: each waits for the answer to a request that nobody can serve.
Prints a line when all are there, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import sys

WINDOW = 50  # opened at once, so that no listener's backlog overflows


async def main(host: str, port: int, revision: str, count: int, held: bool) -> None:
    window = asyncio.Semaphore(WINDOW)
    writers = []

    async def one() -> None:
        async with window:
            reader, writer = await asyncio.open_connection(host, port)
            writers.append(writer)
            writer.write(
                b"GET / HTTP/1.1\r\nHost: bench\r\nKnative-Serving-Namespace: default\r\n"
                b"Knative-Serving-Revision: %s\r\n\r\n" % revision.encode()
            )
            await writer.drain()
            if not held:
                head = await reader.readuntil(b"\r\n\r\n")
                if b" 200 " not in head.split(b"\r\n", 1)[0]:
                    sys.exit(head.decode())

    await asyncio.gather(*(one() for _ in range(count)))
    print("all", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for writer in writers:
        writer.close()


if __name__ == "__main__":
    at, _, number = sys.argv[1].rpartition(":")
    asyncio.run(main(at, int(number), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "held"))
