"""Entry of the admission webhook: `python -m autoscaler_shim.webhook`, configured by environment (settings.py)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

import uvloop

from autoscaler_shim.knative.settings import BadEnvironment
from autoscaler_shim.webhook.settings import Settings, read
from autoscaler_shim.webhook.webhook import Webhook
from kserve_ext.kube.access import AccessError
from kserve_ext.kube.client import Client
from kserve_ext.kube.pod import log_to_stdout


async def serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Client.from_environment(user_agent="kserve-galaxy-webhook") as client:
        webhook = Webhook(settings, client)
        await webhook.start()
        ends = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(webhook.ended())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await webhook.stop()


def main() -> int:
    log_to_stdout("webhook")
    try:
        uvloop.run(serve(read(os.environ)))
    except (BadEnvironment, AccessError, OSError) as error:
        logging.getLogger(__name__).error("can't serve: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
