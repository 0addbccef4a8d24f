"""The prefill/decode side of an instance, as the server sees it: started before the engine, attached after.

A unified instance has none of it. Never decides where a prompt is computed (front.py does).
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Protocol

from runtimes.vllm_pd.status import Status
from runtimes.vllm_pd.timeline import Timelines


class Pair(Protocol):
    @property
    def kv_transfer(self) -> dict[str, Any] | None:
        """What vLLM is told about its KV connector; None: it has none."""

    async def start(self, entrance: Any) -> None:
        """Listens for channels, or dials its peers, while the weights are being loaded."""

    def attach(self, engine: Any) -> None: ...

    def close(self) -> None: ...


class Unified:
    """No peer."""

    kv_transfer: dict[str, Any] | None = None

    async def start(self, entrance: Any) -> None:
        return

    def attach(self, engine: Any) -> None:
        return

    def close(self) -> None:
        return


def make_pair(args: Namespace, status: Status, timelines: Timelines) -> Pair:
    return Unified()
