"""What is known of the load of every revision that this replica is responsible for, and the scraping that adds to it.

As pkg/autoscaler/metrics/collector.go: once a second each revision with a scrape target and ready pods is scraped,
one scrape of it at a time. The windows are core/knative/collection.py's. Their time is unix time less what this
process was not there to see (core/knative/attention.py); what has piled up meanwhile is not recorded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from autoscaler_shim.knative.pods import PodIndex
from autoscaler_shim.knative.stats.scraper import Scraper, load_of
from autoscaler_shim.knative.wheel import Wheel
from kserve_ext.api.knative.children import Trouble, Windows
from kserve_ext.api.knative.config import Network
from kserve_ext.core.knative.attention import Attention
from kserve_ext.core.knative.collection import Collection, Metric
from kserve_ext.core.knative.sampling import Load, Pod, Route
from kserve_ext.core.scaling.window import Averages
from kserve_ext.wire.stats import Stat

log = logging.getLogger(__name__)

SCRAPE_EVERY_S = 1.0
#: Of a revision that is scraped seldom: its requests come by way of activators.
SELDOM_EVERY_S = 5.0
AHEAD_S = 1.0


class Collected:
    """One revision: its windows, whom to scrape, and how that went."""

    __slots__ = ("collection", "load", "pods", "route", "scraped_at", "scraping", "trouble", "windows")

    def __init__(self, windows: Windows, pods: str, network: Network) -> None:
        self.windows = windows
        #: the revision (namespace/name) that its pods are of
        self.pods = pods
        self.collection = Collection(
            windows.stable_s, windows.panic_s, windows.algorithm, bool(windows.target)
        )
        self.route = Route(network.mesh)
        self.scraping: asyncio.Task[None] | None = None
        self.scraped_at = 0.0
        #: What the last scrape said; None: nothing.
        self.load: Load | None = None
        self.trouble: Trouble | None = None


class Collector:
    def __init__(
        self,
        pods: PodIndex,
        scraper: Scraper,
        network: Callable[[], Network],
        troubled: Callable[[str], None],
        took: Callable[[str, float], None],
        seldom: Callable[[str], bool] = lambda key: False,
    ) -> None:
        """`troubled` is told the key of a revision of which another thing went wrong, or nothing any more; `took` is
        told how many seconds a scrape took; `seldom`: what its pods say brings little now."""
        self._pods = pods
        self._scraper = scraper
        self._network = network
        self._troubled = troubled
        self._took = took
        self._seldom = seldom
        self._collected: dict[str, Collected] = {}
        self._attention = Attention()
        self._wheel = Wheel(SCRAPE_EVERY_S, self._turn, self.now)
        self.unusable = 0

    def start(self) -> None:
        self._wheel.start()

    async def stop(self) -> None:
        await self._wheel.stop()
        for key in list(self._collected):
            self.remove(key)

    def now(self) -> float:
        """What the windows, and whatever is decided by them, take for the time."""
        return self._attention.now(time.time())

    def configure(self, key: str, windows: Windows, pods: str) -> None:
        """Begins to collect, or goes on with other windows; what is known already stays known."""
        found = self._collected.get(key)
        if found is None:
            self._collected[key] = Collected(windows, pods, self._network())
            self._wheel.add(key)
        elif (found.windows, found.pods) != (windows, pods):
            found.windows, found.pods = windows, pods
            found.collection.configure(windows.stable_s, windows.panic_s, bool(windows.target), self.now())

    def remove(self, key: str) -> None:
        found = self._collected.pop(key, None)
        self._wheel.discard(key)
        if found is not None and found.scraping is not None:
            found.scraping.cancel()

    def record(self, key: str, stat: Stat) -> None:
        """What an activator says. Its timestamp is set; from a clock that is far ahead, ours counts instead, or the
        windows would be blind until then."""
        found = self._collected.get(key)
        if found is None:
            return
        now = self.now()
        at = min(float(stat.timestamp - self._attention.missed_s), now + AHEAD_S)
        self._record(found, load_of(stat), at)

    def averages(self, key: str, metric: Metric) -> Averages | None:
        found = self._collected.get(key)
        return None if found is None else found.collection.averages(metric, self.now())

    def trouble(self, key: str) -> Trouble | None:
        found = self._collected.get(key)
        return None if found is None else found.trouble

    def _turn(self, key: str) -> None:
        found = self._collected[key]
        if found.scraping is not None:
            return
        pods = self._pods.scrapable(found.pods) if found.windows.target else []
        if not pods:
            found.load = None
            self._note(key, found, None)
            return
        now = time.monotonic()
        if self._seldom(key) and now < found.scraped_at + SELDOM_EVERY_S - SCRAPE_EVERY_S / 2:
            if found.load is not None:  # windows take a second without a word for one without load
                self._record(found, found.load, self.now())
            return
        found.scraped_at = now
        # Those that were found just now: by the time the task begins the last one may have gone.
        found.scraping = asyncio.get_running_loop().create_task(self._scrape(key, found, pods))

    async def _scrape(self, key: str, found: Collected, pods: Sequence[Pod]) -> None:
        begun = time.monotonic()
        try:
            target = f"{found.windows.target}.{key.partition('/')[0]}"
            result = await self._scraper.scrape(
                target, pods, found.windows.stable_s, found.route, self._network()
            )
            self._took(key, time.monotonic() - begun)
            if isinstance(result, Trouble):
                found.load = None
                self._note(key, found, result)
                return
            found.load = result
            self._record(found, result, self.now())
            self._note(key, found, None)
        finally:
            found.scraping = None

    def _record(self, found: Collected, load: Load, at: float) -> None:
        if not self._attention.catching_up and not found.collection.record(load, at):
            self.unusable += 1

    def _note(self, key: str, found: Collected, trouble: Trouble | None) -> None:
        """A change of reason is news; that the message names another pod is none."""
        before, found.trouble = found.trouble, trouble
        if (before and before.reason) == (trouble and trouble.reason):
            return
        if trouble is not None:
            log.warning("%s: %s", key, trouble.message)
        self._troubled(key)
