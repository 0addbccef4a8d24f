"""Asks a revision's public service whether an activator answers there: only then may its last pods go.

The dialect of knative.dev/networking's prober as pkg/reconciler/autoscaling/kpa/scaler.go uses it. A probe runs by
itself and its answer is remembered for a moment, so that no reconciliation waits for it: a revision that is about
to go to zero may be needed again at any time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

import aiohttp

log = logging.getLogger(__name__)

HEADERS: Final = {"K-Network-Probe": "activator", "User-Agent": "Knative-Autoscaling-Probe"}
BODY: Final = b"activator"
TIMEOUT_S: Final = 5.0
#: An answer counts for so long; the reconciliation that it causes comes at once.
FRESH_S: Final = 2.0


def target(service: str, namespace: str, protocol: str, domain: str) -> str:
    """The double slash is Knative's, too."""
    port = 81 if protocol == "h2c" else 80
    return f"http://{service}.{namespace}.svc.{domain}:{port}//healthz"


class Prober:
    """close() it."""

    def __init__(self, answered: Callable[[str], None]) -> None:
        """`answered` is told the key for which there is an answer now."""
        self._answered = answered
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, limit=0),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._answers: dict[str, tuple[bool, float]] = {}

    async def close(self) -> None:
        for task in list(self._asking.values()):
            task.cancel()
        await self._session.close()

    def ask(self, key: str, url: str) -> bool | None:
        """None: it is being asked, and `answered` will be told."""
        answer, at = self._answers.pop(key, (False, 0.0))
        if time.monotonic() - at < FRESH_S:
            return answer
        if key not in self._asking:
            self._asking[key] = asyncio.get_running_loop().create_task(self._ask(key, url))
        return None

    def forget(self, key: str) -> None:
        self._answers.pop(key, None)

    async def _ask(self, key: str, url: str) -> None:
        answer = False
        try:
            async with self._session.get(url, headers=HEADERS, allow_redirects=False) as response:
                body = await response.content.read(len(BODY) + 1)
                answer = response.status == 200 and body == BODY
                if not answer:
                    log.info("%s: %s answered %d, not an activator", key, url, response.status)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.info("%s: %s: %s", key, url, str(error) or type(error).__name__)
        finally:
            self._asking.pop(key, None)
        self._answers[key] = answer, time.monotonic()
        self._answered(key)
