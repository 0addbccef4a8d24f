"""Channels between ranks that stand before the first request: decode's front hears who there is, its ranks dial."""

from __future__ import annotations

import asyncio
from typing import Any

from runtimes.vllm_pd.ranks.decode_front import FrontLandings
from runtimes.vllm_pd.ranks.process import prepare
from runtimes.vllm_pd.ranks.words import PeerRanks


def dial_ahead(engine: Any, landings: FrontLandings) -> None:
    """From now on the ranks dial those of each peer as soon as it says where they are. Called on the event loop."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[Any]] = set()

    def ended(task: asyncio.Task[Any]) -> None:
        """An engine that has died says so elsewhere; channels that could not be dialled are when they are needed."""
        tasks.discard(task)
        if not task.cancelled():
            task.exception()

    def tell(peer: PeerRanks) -> None:
        job = engine.client.call(lambda core: core.model_executor.collective_rpc(prepare, args=(peer,)))
        task = loop.create_task(job)
        tasks.add(task)
        task.add_done_callback(ended)

    def soon(peer: PeerRanks) -> None:
        loop.call_soon_threadsafe(tell, peer)

    landings.on_peer = soon
    for peer in landings.peers:
        tell(peer)
