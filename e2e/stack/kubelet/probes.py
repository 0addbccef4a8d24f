"""Probes of a container: one attempt of each kind, and the loop that turns attempts into a verdict.

As the kubelet's prober, with one liberty that Kubernetes allows: until a container is ready its readiness is asked
for more often than the period says, so that starts are quick.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp

from e2e.stack import network

Object = dict[str, Any]
_AGENT = "kube-probe/1.36"
_FIRST_GAP_S = 0.05
_LONGEST_EARLY_GAP_S = 1.0


class Target:
    """Where one container's probes go."""

    def __init__(
        self, client: aiohttp.ClientSession, namespace: str, address: str, container: Object
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._address = address
        self._ports = {
            port["name"]: port["containerPort"] for port in container.get("ports") or [] if "name" in port
        }

    def port(self, named: int | str) -> int:
        if isinstance(named, int) or named.isdigit():
            return int(named)
        return int(self._ports[named])

    async def attempt(self, probe: Object) -> str:
        """Empty on success, else why not."""
        try:
            async with asyncio.timeout(probe.get("timeoutSeconds") or 1):
                return await self._attempt(probe)
        except TimeoutError:
            return "no answer in time"
        except (OSError, aiohttp.ClientError) as error:
            return repr(error)

    async def _attempt(self, probe: Object) -> str:
        if action := probe.get("httpGet"):
            return await self.http(action)
        if action := probe.get("tcpSocket"):
            _, writer = await asyncio.open_connection(self._address, self.port(action["port"]))
            writer.close()
            return ""
        if action := probe.get("exec"):
            process = await asyncio.create_subprocess_exec(
                *network.command(self._namespace, action["command"])
            )
            status = await process.wait()
            return f"status {status}" if status else ""
        return f"probe {sorted(probe)} is not supported"

    async def http(self, action: Object) -> str:
        scheme = action.get("scheme", "HTTP").lower()
        path = action.get("path") or "/"
        url = (
            f"{scheme}://{self._address}:{self.port(action['port'])}{path if path[0] == '/' else '/' + path}"
        )
        headers = {"User-Agent": _AGENT}
        headers.update((header["name"], header["value"]) for header in action.get("httpHeaders") or [])
        async with self._client.get(url, headers=headers, ssl=False, allow_redirects=False) as response:
            await response.read()
            return "" if 200 <= response.status < 400 else f"status {response.status}"


async def watch(
    target: Target, probe: Object, verdict: Callable[[bool, str], None], eager: bool = False
) -> None:
    """For ever; `verdict` is called when attempts enough in a row agree. `eager`: quick until the first success."""
    await asyncio.sleep(probe.get("initialDelaySeconds") or 0)
    period = probe.get("periodSeconds") or 10
    needed = {True: probe.get("successThreshold") or 1, False: probe.get("failureThreshold") or 3}
    gap = _FIRST_GAP_S
    last, row = None, 0
    while True:
        why = await target.attempt(probe)
        good = not why
        row = row + 1 if good == last else 1
        last = good
        if row >= needed[good]:
            verdict(good, why)
        if eager and good:
            eager = False
        await asyncio.sleep(min(gap, period) if eager else period)
        gap = min(gap * 2, _LONGEST_EARLY_GAP_S)
