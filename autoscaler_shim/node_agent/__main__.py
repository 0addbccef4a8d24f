"""Entry of a node's agent: `python -m autoscaler_shim.node_agent`, configured by environment (settings.py)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

import uvloop

from autoscaler_shim.knative.settings import BadEnvironment
from autoscaler_shim.node_agent.agent import AnotherKey, NodeAgent
from autoscaler_shim.node_agent.settings import Settings, read
from kserve_ext.kube.access import AccessError
from kserve_ext.kube.client import Client
from kserve_ext.kube.pod import log_to_stdout


async def serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Client.from_environment(user_agent="kserve-galaxy-node-agent") as client:
        agent = NodeAgent(settings, client)
        await agent.start()
        stopping, ended = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(agent.ended())
        try:
            await asyncio.wait((stopping, ended), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await ended
        finally:
            for task in (stopping, ended):
                task.cancel()
            await agent.stop()


def main() -> int:
    log_to_stdout("node-agent")
    try:
        uvloop.run(serve(read(os.environ)))
    except (AnotherKey, BadEnvironment, AccessError, OSError) as error:
        logging.getLogger(__name__).error("can't serve: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
