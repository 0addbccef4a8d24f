"""Entry of an autoscaler in a Knative cluster: `python -m autoscaler_shim.knative`, configured by environment.

Takes the place of Knative's own autoscaler with its Deployment's environment, ports and signals; settings.py has the
variables. Decides nothing itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

import uvloop

from autoscaler_shim.knative.autoscaler import Autoscaler
from autoscaler_shim.knative.settings import BadEnvironment, Settings, read
from kserve_ext.kube.access import AccessError
from kserve_ext.kube.client import Client, KubeError
from kserve_ext.kube.config_map import BadConfig
from kserve_ext.kube.identity import NoIdentity
from kserve_ext.kube.pod import log_to_stdout, raise_open_files


async def serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    client = Client.from_environment(user_agent="kserve-galaxy-autoscaler")
    autoscaler = Autoscaler(settings, client)
    starting = asyncio.ensure_future(autoscaler.start())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            await stopping
    finally:
        for task in (starting, stopping):
            task.cancel()
        await autoscaler.stop()
        await client.close()


def main() -> int:
    log_to_stdout("autoscaler")
    raise_open_files()
    try:
        uvloop.run(serve(read(os.environ)))
    except (BadEnvironment, BadConfig, NoIdentity, AccessError, KubeError, OSError) as error:
        logging.getLogger(__name__).error("can't serve: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
