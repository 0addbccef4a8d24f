"""Leases of prefill engines in a Knative cluster: requests that an activator of ours sends to one of them.

The activator knows from annotations which revision prefills for a group (kserve_ext/core/knative/groups.py), chooses
the instance, holds the request while there is none, and reports it as demand. So there are no slots to account for
here, and no list of peers: each instance is known from its first lease on, and its channel is dialled then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, Final

import aiohttp

from kserve_ext.core.knative.groups import PREFILL_OF
from kserve_ext.core.kv_links import Peer
from runtimes.vllm_pd.given import PATH
from runtimes.vllm_pd.home_client import NO_WORK, NOTHING, Computed, Lease, NoPrefill, Wanted
from runtimes.vllm_pd.load import Load

#: So long a prefill engine may take to start while a request waits for it that isn't a client's.
_WAKE_S: Final = 300.0
#: While one is known to be starting, no client is kept waiting for it longer than this.
_SHORT_S: Final = 0.25
_BACK_S: Final = 1.0
_AGAIN_S: Final = 5.0
_LONGEST_REASON: Final = 200


class _NotInTime(NoPrefill):
    """It may come yet."""


class RouteLeases:
    """`group` is NAMESPACE/NAME; `activator` a URL without a path."""

    def __init__(self, group: str, activator: str, wait_s: float) -> None:
        self._namespace, _, self._name = group.partition("/")
        self._url = activator.rstrip("/") + PATH
        self._wait_s = wait_s
        self._session: aiohttp.ClientSession | None = None
        self._open: dict[str, aiohttp.ClientResponse] = {}
        self._waking: asyncio.Task[None] | None = None
        self.woken = False

    async def lease(
        self, request_id: str, tokens: int, wait_s: float | None = None, wanted: Wanted = NOTHING
    ) -> Lease:
        wait_s = self._wait_s if wait_s is None else wait_s
        if self._waking is not None and not self._waking.done():
            return await self._ask(request_id, min(wait_s, _SHORT_S), wanted)
        try:
            return await self._ask(request_id, wait_s, wanted)
        except _NotInTime:
            self._waking = asyncio.create_task(self._wake())
            raise

    async def _ask(self, request_id: str, wait_s: float, wanted: Wanted) -> Lease:
        try:
            async with asyncio.timeout(wait_s):
                response = await self._sending().post(self._url, headers=self._head(request_id))
                lease = await self._read(response)
        except TimeoutError:
            raise _NotInTime(f"no prefill instance within {wait_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise NoPrefill(f"{self._url}: {error}") from error
        self._open[lease.id] = response
        if lease.instance in wanted.excluded:
            await self.release(lease)
            raise NoPrefill(f"{lease.instance} is left alone for a while", "backing-off")
        return lease

    async def _wake(self) -> None:
        """Demand that stays for as long as a start takes, whereas clients' requests give up."""
        with contextlib.suppress(NoPrefill):
            await self.release(await self._ask("galaxy-wakes-prefill", _WAKE_S, NOTHING))
            self.woken = True

    async def release(self, lease: Lease, failed: str = "", work: Computed = NO_WORK) -> None:
        """To the instance itself: then the answer ends as it should, and its connection can be used again."""
        response = self._open.pop(lease.id, None)
        if response is None:
            return
        try:
            async with asyncio.timeout(_BACK_S):
                back = f"http://{lease.addr}{PATH}/{lease.id}"
                async with self._sending().post(back) as answer:
                    await answer.read()
                await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError):
            response.close()  # which ends the lease, too

    async def report(self, load: Load) -> None:
        """Nobody hears it: Knative scales by requests."""

    async def peers(self, tag: str) -> tuple[str, tuple[Peer, ...]]:
        """Never a list. The first time, a lease wakes the prefill service together with this engine."""
        if not self.woken:
            await self._wake()
        if not self.woken:
            await asyncio.sleep(_AGAIN_S)
            return "", ()
        await asyncio.get_running_loop().create_future()
        raise AssertionError("unreachable")

    async def close(self) -> None:
        if self._waking is not None:
            self._waking.cancel()
        for response in self._open.values():
            response.close()
        if self._session is not None:
            await self._session.close()

    def _sending(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=None)
            )
        return self._session

    def _head(self, request_id: str) -> dict[str, str]:
        return {
            "Knative-Serving-Namespace": self._namespace,
            "Knative-Serving-Revision": PREFILL_OF + self._name,
            "X-Request-Id": request_id,
        }

    async def _read(self, response: aiohttp.ClientResponse) -> Lease:
        try:
            if response.status != 200:
                text = (await response.text())[:_LONGEST_REASON].strip()
                raise NoPrefill(f"{response.status}: {text}")
            facts: dict[str, Any] = json.loads(await response.content.readline())
            return Lease(
                facts["lease"],
                facts["instance"],
                facts["addr"],
                facts["generation"],
                "the activator's choice",
            )
        except (ValueError, KeyError, TypeError) as error:
            response.close()
            raise NoPrefill(f"{self._url} answers with no lease: {error!r}") from error
        except BaseException:
            with contextlib.suppress(Exception):
                response.close()
            raise
