"""Asks a revision's pods for their statistics: a sample of them by address, or the service where a mesh forbids that.

As pkg/autoscaler/metrics (stats_scraper.go, http_scrape_client.go): whom to ask and what the answers mean is decided
in core/knative/sampling.py; this carries it out, in parallel, with kept connections to pods and none to the service
(each request there should meet another pod).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final

import aiohttp

from kserve_ext.api.knative.children import Trouble
from kserve_ext.api.knative.config import Network
from kserve_ext.core.knative.sampling import Load, MeshMode, Plan, Pod, Route, extrapolate, plan, sample_size
from kserve_ext.wire.stats import MAX_STAT_BYTES, Malformed, Stat, decode_stat

PORT: Final = 9090
TIMEOUT_S: Final = 3.0
PROTOBUF: Final = "application/protobuf"
KEPT: Final = 1000
#: One worker asks the service so often for a pod that it hasn't met.
TRIES: Final = 10

_NO_PODS = Trouble("CollectionFailed", "Failed to reconcile metric collection: too few pods could be scraped")
_NO_NEW_POD = Trouble("DidNotReceiveStat", "did not receive stat from an unscraped pod")


class ScrapeFailed(Exception):
    """`mesh`: the answer is one that a mesh gives for a pod's address."""

    def __init__(self, what: str, mesh: bool = False) -> None:
        super().__init__(what)
        self.mesh = mesh


def load_of(stat: Stat) -> Load:
    return Load(
        stat.average_concurrent_requests - stat.average_proxied_concurrent_requests,
        stat.request_count - stat.proxied_request_count,
    )


class Scraper:
    """Of all revisions. close() it."""

    def __init__(self, port: int = PORT) -> None:
        self._port = port
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        self._pods = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=KEPT), timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        )
        self._service = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=KEPT, force_close=True),
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        await self._pods.close()
        await self._service.close()

    async def scrape(
        self, target: str, pods: Sequence[Pod], window_s: float, route: Route, network: Network
    ) -> Load | Trouble:
        """`target`: the private service as <name>.<namespace>; at least one pod."""
        if route.direct(time.time()) or network.passthrough:
            asked = plan(pods, window_s, time.time(), random.shuffle)
            found = await self._scrape_pods(asked, len(pods), target if network.passthrough else "")
            if isinstance(found, Load):
                route.pods_answered()
                return found
            if found is not None or not route.may_fall_back or network.passthrough:
                return found or _NO_PODS
        through = await self._scrape_service(target, len(pods), window_s)
        if isinstance(through, Load) and route.may_fall_back and network.mesh is MeshMode.AUTO:
            route.pods_refused(time.time())
        return through

    async def _scrape_pods(self, asked: Plan, population: int, passthrough: str) -> Load | Trouble | None:
        """None: all that came back were answers of a mesh."""
        headers = {"Accept": PROTOBUF}
        if passthrough:
            headers |= {"Host": passthrough, "Knative-Direct-Lb": "true"}
        order = iter(asked.order)
        failures: list[ScrapeFailed] = []

        async def one() -> Stat | None:
            for address in order:
                host = f"[{address}]" if ":" in address else address
                try:
                    return await _get(self._pods, f"http://{host}:{self._port}/metrics", headers)
                except ScrapeFailed as failed:
                    failures.append(failed)
            return None

        stats = [
            stat for stat in await asyncio.gather(*(one() for _ in range(asked.size))) if stat is not None
        ]
        if len(stats) == asked.size:
            return extrapolate([load_of(stat) for stat in stats], population)
        if stats or not all(failed.mesh for failed in failures):
            last = failures[-1] if failures else "no pods"
            return _NO_PODS._replace(message=f"{_NO_PODS.message}; the last one: {last}")
        return None

    async def _scrape_service(self, target: str, population: int, window_s: float) -> Load | Trouble:
        size = sample_size(population)
        url = f"http://{target}:{self._port}/metrics"
        met: set[str] = set()
        old: list[Stat] = []
        young: list[Stat] = []
        failures: list[ScrapeFailed] = []

        async def one() -> None:
            for _ in range(TRIES):
                try:
                    stat = await _get(self._service, url, {"Accept": PROTOBUF})
                except ScrapeFailed as failed:
                    failures.append(failed)
                    continue
                if stat.pod_name in met:
                    continue
                met.add(stat.pod_name)
                if stat.process_uptime >= window_s:
                    old.append(stat)
                    return
                young.append(stat)
                if len(young) > size:
                    return

        await asyncio.gather(*(one() for _ in range(size)))
        stats = [*old, *young][:size]
        if len(stats) == size:
            return extrapolate([load_of(stat) for stat in stats], population)
        if failures:
            return Trouble(
                "CollectionFailed", f"Failed to reconcile metric collection: {target}: {failures[-1]}"
            )
        return _NO_NEW_POD


async def _get(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> Stat:
    try:
        async with session.get(url, headers=headers, allow_redirects=False) as response:
            if not 200 <= response.status < 300:
                raise ScrapeFailed(f"{url} answered {response.status}", mesh=response.status in (502, 503))
            if response.headers.get("Content-Type") != PROTOBUF:
                raise ScrapeFailed(f"{url} answered {response.headers.get('Content-Type')}, not {PROTOBUF}")
            body = b""
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_STAT_BYTES:
                    break
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ScrapeFailed(f"{url}: {str(error) or type(error).__name__}") from error
    try:
        return decode_stat(body)
    except Malformed as why:
        raise ScrapeFailed(f"{url} answered no Stat: {why}") from why
