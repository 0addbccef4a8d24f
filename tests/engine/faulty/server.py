"""The real server, after breaking what FAULT names. Files named by FAULT_FILE arm a fault, so that it can wait."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.engine.faulty import storm


def main(argv: list[str]) -> int:
    from runtimes.vllm_pd import server

    fault = os.environ.get("FAULT", "")
    if fault:
        faults = {"die": _die, "hang": _hang, "flip": _flip, "stall": _stall}
        storms = {"storm-prefill": storm.prefill, "storm-decode": storm.decode}
        (faults | storms)[fault]()
    return server.main(argv)


def _armed() -> bool:
    return Path(os.environ["FAULT_FILE"]).exists()


def _die() -> None:
    """The engine's step raises once armed."""
    from vllm.v1.engine.core import EngineCore

    step = EngineCore.step

    def dying(self: Any) -> Any:
        if _armed():
            raise RuntimeError("the fault that the test asked for")
        time.sleep(0.02)  # so that a stream lasts
        return step(self)

    EngineCore.step = dying


def _hang() -> None:
    """A step of the engine does not end once armed."""
    from vllm.v1.engine.core import EngineCore

    step = EngineCore.step

    def hanging(self: Any) -> Any:
        while _armed():
            time.sleep(0.01)
        return step(self)

    EngineCore.step = hanging


def _flip() -> None:
    """One bit of the next block that is sent changes after its checksum was made."""
    import zlib

    from runtimes.transport import pair

    class Crc:
        @staticmethod
        def crc32(block: memoryview) -> int:
            right = zlib.crc32(block)
            if _armed():
                Path(os.environ["FAULT_FILE"]).unlink()
                block[len(block) // 2] ^= 1
            return right

    pair.zlib = Crc  # type: ignore[attr-defined, assignment]


def _stall() -> None:
    """No block is sent while armed: the transfer hangs."""
    from runtimes.transport.pair import Channel

    for name in ("write", "write_rows"):
        setattr(Channel, name, _stalled(getattr(Channel, name)))


def _stalled(write: Callable[..., int]) -> Callable[..., int]:
    def stalled(channel: Any, *args: Any) -> int:
        while _armed() and channel.lost is None:
            time.sleep(0.01)
        return write(channel, *args)

    return stalled
