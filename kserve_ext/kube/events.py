"""Kubernetes Events about objects that people look at: few, late where there is more to do, never waited for.

As client-go's recorder: what is said again of one object is counted in the Event that is there, for up to AGAIN_S. At
most QPS a second leave, after a first BURST; what is in line is one for each object and reason, MOST of them. What
doesn't fit is dropped and counted: an Event is for people, and the object's conditions say the same.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

from kserve_ext.core.token_bucket import TokenBucket
from kserve_ext.kube.client import Client, KubeError, NotFound
from kserve_ext.kube.kinds import EVENTS

log = logging.getLogger(__name__)

QPS: Final = 1.0
BURST: Final = 25
MOST: Final = 256
AGAIN_S: Final = 600.0
#: While others are busy it waits for so long at most.
BEHIND_S: Final = 30.0
LOOK_S: Final = 0.5
_MESSAGE: Final = 1024  # the API server's bound
Severity = Literal["Normal", "Warning"]


class About(NamedTuple):
    """An object, as an Event refers to it."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


class Said(NamedTuple):
    severity: Severity
    message: str
    times: int
    since: float


class _Written(NamedTuple):
    name: str
    times: int
    at: float


class Events:
    """`start` once, `stop` once; `tell` at any time."""

    def __init__(self, client: Client, component: str, busy: Callable[[], bool] = bool) -> None:
        """`component`: who says it; `busy`: whether the API server has better things to do."""
        self._client = client
        self._component = component
        self._busy = busy
        self._bucket = TokenBucket(QPS, BURST)
        self._line: OrderedDict[tuple[About, str], Said] = OrderedDict()
        self._written: OrderedDict[tuple[About, str], _Written] = OrderedDict()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._complained = ""
        self.told = self.dropped = 0

    def tell(self, about: About, severity: Severity, reason: str, message: str) -> None:
        key = about, reason
        before = self._line.get(key)
        count, since = (before.times + 1, before.since) if before else (1, time.time())
        if before is None and len(self._line) >= MOST:
            self.dropped += 1
            return
        self._line[key] = Said(severity, message[:_MESSAGE], count, since)
        self._news.set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="events")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # --- inside

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            if not self._line:
                self._news.clear()
                continue
            await asyncio.sleep(self._bucket.take(time.monotonic()))
            await self._wait_for_others()
            (about, reason), said = self._line.popitem(last=False)
            try:
                await self._write(about, reason, said)
                self.told += said.times
            except KubeError as error:
                self.dropped += said.times
                if str(error) != self._complained:
                    self._complained = str(error)
                    log.warning("events can't be written, conditions say the same: %s", error)

    async def _wait_for_others(self) -> None:
        until = time.monotonic() + BEHIND_S
        while self._busy() and time.monotonic() < until:  # noqa: ASYNC110  nobody tells of its end
            await asyncio.sleep(LOOK_S)

    async def _write(self, about: About, reason: str, said: Said) -> None:
        key, now = (about, reason), time.time()
        former = self._written.get(key)
        if former is not None and now - former.at < AGAIN_S:
            count = former.times + said.times
            change = {"count": count, "lastTimestamp": _rfc3339(now), "message": said.message}
            try:
                await self._client.patch(EVENTS, about.namespace, former.name, change)
            except NotFound:
                pass  # it has had its time
            else:
                self._written[key] = _Written(former.name, count, now)
                return
        name = f"{about.name}.{secrets.token_hex(8)}"
        await self._client.create(EVENTS, self._event(about, name, reason, said, now))
        self._written[key] = _Written(name, said.times, now)
        self._written.move_to_end(key)
        if len(self._written) > MOST:
            self._written.popitem(last=False)

    def _event(self, about: About, name: str, reason: str, said: Said, now: float) -> dict[str, Any]:
        return {
            "metadata": {"namespace": about.namespace, "name": name},
            "involvedObject": {
                "apiVersion": about.api_version,
                "kind": about.kind,
                "namespace": about.namespace,
                "name": about.name,
                "uid": about.uid,
            },
            "type": said.severity,
            "reason": reason,
            "message": said.message,
            "count": said.times,
            "firstTimestamp": _rfc3339(said.since),
            "lastTimestamp": _rfc3339(now),
            "source": {"component": self._component},
            "reportingComponent": self._component,
        }


def owner_of(obj: Mapping[str, Any], kind: str) -> About | None:
    """Of this kind, as the object's owner references have it."""
    metadata = obj["metadata"]
    for owner in metadata.get("ownerReferences") or ():
        if owner.get("kind") == kind:
            return About(
                str(owner.get("apiVersion", "")),
                kind,
                metadata["namespace"],
                owner["name"],
                str(owner.get("uid", "")),
            )
    return None


def _rfc3339(now: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
