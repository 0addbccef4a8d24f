"""What the zygote imports, and what a start would look for first: parsers and loops import some things late."""

from __future__ import annotations

import asyncio

from bench.peers.tiny_runtime import server


def preimport() -> None:
    server.parser()
    asyncio.run(asyncio.sleep(0))
