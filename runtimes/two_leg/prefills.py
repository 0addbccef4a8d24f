"""Where the router gets a prefill engine for one request: the least loaded of a fixed list, by the tokens under way.

In a group the home leases them instead (vllm_pd/home_client.py); both are Leasing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Protocol

from kserve_ext.core.two_leg.engines import Engines
from runtimes.vllm_pd.home_client import Lease, NoPrefill


class Leasing(Protocol):
    async def lease(self, request_id: str, tokens: int, wait_s: float | None = None) -> Lease:
        """Raises NoPrefill."""

    async def release(self, lease: Lease, failed: str = "") -> None: ...

    async def close(self) -> None: ...


class LeastLoaded:
    def __init__(self, engines: Engines, now: Callable[[], float]) -> None:
        self.engines = engines
        self._now = now
        self._ids = itertools.count(1)
        self._tokens: dict[str, int] = {}

    async def lease(self, request_id: str, tokens: int, wait_s: float | None = None) -> Lease:
        if not self.engines.all:
            raise NoPrefill("no prefill engine is known; name one with --prefill")
        addr = self.engines.pick(self._now())
        if not addr:
            raise NoPrefill("every prefill engine has failed and is left alone for a while", "backing-off")
        lease = Lease(str(next(self._ids)), addr, addr)
        self.engines.begun(addr, tokens)
        self._tokens[lease.id] = tokens
        return lease

    async def release(self, lease: Lease, failed: str = "") -> None:
        self.engines.ended(lease.addr, self._tokens.pop(lease.id))
        if failed:
            self.engines.failed(lease.addr, self._now())
        else:
            self.engines.answered(lease.addr)

    async def close(self) -> None:
        return
