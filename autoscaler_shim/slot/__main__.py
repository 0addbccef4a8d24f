"""Entry of a standby pod: `python -m autoscaler_shim.slot`, configured by environment (settings.py)."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from autoscaler_shim.slot.settings import BadEnvironment, Settings, read
from autoscaler_shim.slot.slot import Slot
from kserve_ext.kube.pod import log_to_stdout, raise_open_files


async def serve(settings: Settings) -> int:
    return await Slot(settings).run()


def main() -> int:
    log_to_stdout("slot")
    raise_open_files()
    try:
        settings = read(os.environ)
    except BadEnvironment as error:
        logging.getLogger(__name__).error("can't begin: %s", error)
        return 1
    return asyncio.run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())
