"""Streams over a unix socket that many dial at once.

With a listener's queue full the kernel refuses a dial that doesn't block (EAGAIN), and has no way to tell when to try
again. uvloop raises that; asyncio takes it for a dial under way and hands out a stream that is none, whose first
write fails (ENOTCONN), long after anybody would think of the queue.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Final

#: Of listeners here. Where the kernel's own limit (net.core.somaxconn) is less, that counts.
BACKLOG: Final = 4096
DIAL_S: Final = 10.0
_AGAIN_S: Final = (0.001, 0.02)


async def dial(
    path: str | Path, *, limit: int = 1 << 16, seconds: float = DIAL_S
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`limit`: bytes of the longest line. Raises OSError; TimeoutError, which is one, where its queue stays full."""
    loop = asyncio.get_running_loop()
    deadline, pause_s = loop.time() + seconds, _AGAIN_S[0]
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(str(path))
                break
            except BlockingIOError:
                if loop.time() >= deadline:
                    raise TimeoutError(f"nobody has taken a connection for {seconds:g} s") from None
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _AGAIN_S[1])
        return await asyncio.open_unix_connection(sock=sock, limit=limit)
    except BaseException:
        sock.close()
        raise
