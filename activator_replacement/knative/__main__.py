"""Entry of an activator in a Knative cluster: `python -m activator_replacement.knative`, configured by environment.

Takes the place of Knative's own activator with its Deployment's environment, ports and signals; settings.py has the
variables. Decides nothing itself.
"""

from __future__ import annotations

# ruff: noqa: E402  the form is chosen before anything of it is imported
from activator_replacement import compiled

compiled.use()

import asyncio
import gc
import logging
import os
import signal
import sys

import uvloop

from activator_replacement.knative.activator import Activator
from activator_replacement.knative.settings import BadEnvironment, Settings, read
from activator_replacement.knative.tls import NoCertificate
from kserve_ext.kube.access import AccessError
from kserve_ext.kube.client import Client, KubeError
from kserve_ext.kube.config_map import BadConfig
from kserve_ext.kube.identity import NoIdentity
from kserve_ext.kube.pod import log_to_stdout, raise_open_files


async def serve(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    client = Client.from_environment(user_agent="kserve-galaxy-activator")
    activator = Activator(settings, client)
    starting = asyncio.ensure_future(activator.start())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # the API server doesn't answer, and nobody waits any more
            return
        await starting
        gc.collect()
        gc.freeze()  # what is here now stays: no later collection has to look at it
        await stopping
        await activator.end()
    finally:
        starting.cancel()
        stopping.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await client.close()


def main() -> int:
    log_to_stdout("activator")
    raise_open_files()
    try:
        uvloop.run(serve(read(os.environ)))
    except (BadEnvironment, BadConfig, NoCertificate, NoIdentity, AccessError, KubeError, OSError) as error:
        logging.getLogger(__name__).error("can't serve: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
