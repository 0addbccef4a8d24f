"""Many revisions at zero, one request to each at once, and when each step of their starts was seen.

The steps are read from watches of the API server in this process, so all times are of one clock. Nothing is decided
here about which implementation runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from e2e.stack import watch
from kserve_ext.api.standby import names

Object = dict[str, Any]
ANSWER_S = 300.0
#: What the API server shows later than the last answer belongs to the burst as well.
LINGER_S = 1.0
REVISION = "serving.knative.dev/revision"
SERVICE_TYPE = "networking.internal.knative.dev/serviceType"
#: In the order in which they usually happen. `logged` is the autoscaler's own word: Knative's comes before its patch
#: of the scale, ours when the patch has been answered. `endpoint`: the pod's address is among the ready ones.
STEPS = ("logged", "scaled", "created", "bound", "ready", "endpoint", "answered")
_SCALES = re.compile(r"Scaling from 0 to \d|^default/(\S+): activating, want \d")
_WATCHES = {
    "/apis/apps/v1/namespaces/default/deployments": ("scaled",),
    "/api/v1/namespaces/default/pods": ("created", "bound", "ready"),
    "/api/v1/namespaces/default/endpoints": ("endpoint",),
}


@dataclass
class Burst:
    """Of one burst: when each revision was asked for, and when each of its steps was first seen."""

    asked: dict[str, float] = field(default_factory=dict)
    seen: dict[str, dict[str, float]] = field(default_factory=lambda: {step: {} for step in STEPS})
    outcomes: Counter[str] = field(default_factory=Counter)
    #: What was answered with 200.
    bodies: dict[str, str] = field(default_factory=dict)
    #: Pods that a ReplicaSet made, by name; and those of them of which a container began.
    made: set[str] = field(default_factory=set)
    began: set[str] = field(default_factory=set)

    def answers_s(self) -> list[float]:
        """From request to answer, of those answered with 200, in order."""
        return sorted(at - self.asked[name] for name, at in self.seen["answered"].items())

    def all_s(self) -> float:
        """From the first request to the last answer."""
        return max(self.seen["answered"].values()) - min(self.asked.values())

    def steps_s(self, step: str) -> list[float]:
        """From request to the step."""
        return [at - self.asked[name] for name, at in self.seen[step].items() if name in self.asked]


def steps_of(kind: str, obj: Object) -> tuple[str, ...]:
    """Those that the object shows to be done; `kind`: the last word of its path."""
    status = obj.get("status") or {}
    if kind == "deployments":
        return ("scaled",) if obj["spec"].get("replicas") else ()
    if kind == "endpoints":
        return ("endpoint",) if any(s.get("addresses") for s in obj.get("subsets") or []) else ()
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or [])
    bound = ("bound",) if obj["spec"].get("nodeName") else ()
    return ("created", *bound, *(("ready",) if ready else ()))


def began(pod: Object) -> bool:
    """Whether a container of it runs, or has run."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return any("waiting" not in (s.get("state") or {"waiting": {}}) for s in statuses)


class Observer:
    """Follows the objects; what happens to revisions at zero goes to the burst under way."""

    def __init__(self) -> None:
        self.burst: Burst | None = None
        #: Revision -> objects of each kind that still show it above zero.
        self._alive: dict[str, set[str]] = {}
        #: Which revision an object was seen with: a pod may leave its revision without ending.
        self._seen_with: dict[str, str] = {}
        self._changed = asyncio.Event()

    async def follow(self, client: aiohttp.ClientSession) -> None:
        await asyncio.gather(*(self._follow(client, path) for path in _WATCHES))

    async def _follow(self, client: aiohttp.ClientSession, path: str) -> None:
        kind = path.rpartition("/")[2]
        await watch.follow(client, path, lambda change, obj: self.changed(kind, change, obj))

    def changed(self, kind: str, change: str, obj: Object) -> None:
        """An object of a revision is there (SET) or has gone (GONE)."""
        labels = obj["metadata"].get("labels", {})
        revision = labels.get(REVISION)
        key = f"{kind}/{obj['metadata']['name']}"
        former = self._seen_with.pop(key, revision)
        if former and former != revision:
            self._alive.get(former, set()).discard(key)
            self._changed.set()
        if not revision or (kind == "endpoints" and labels.get(SERVICE_TYPE) != "Private"):
            return
        steps = () if change == "GONE" else steps_of(kind, obj)
        alive = self._alive.setdefault(revision, set())
        if change != "GONE":
            self._seen_with[key] = revision
        (alive.add if steps else alive.discard)(key)
        if self.burst and revision in self.burst.asked:
            if kind == "pods" and change != "GONE" and names.POOL_LABEL not in labels:
                self.burst.made.add(key)
                if began(obj):
                    self.burst.began.add(key)
            now = time.time()
            for step in steps:
                self.burst.seen[step].setdefault(revision, now)
        self._changed.set()

    async def wait_zero(self, revisions: list[str], seconds: float) -> None:
        """No replicas wanted, no pods, no endpoints."""
        async with asyncio.timeout(seconds):
            while any(self._alive.get(revision) for revision in revisions):
                self._changed.clear()
                await self._changed.wait()

    async def caught_up(self, burst: Burst, seconds: float) -> bool:
        """Whether every revision that was answered has a pod of its own among its ready addresses by then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while burst.seen["answered"].keys() - burst.seen["endpoint"].keys():
                    self._changed.clear()
                    await self._changed.wait()
                return True
        return False


async def fire(
    observer: Observer,
    revisions: list[str],
    activator: str,
    linger_s: float = LINGER_S,
    catch_up_s: float = 0.0,
) -> Burst:
    """One request to each at once, to the activator as an ingress would.

    Returns `linger_s` after the last answer and, where `catch_up_s` is given, after the API server shows of all that
    they were woken, or after so many seconds.
    """
    burst = observer.burst = Burst()
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as client:

        async def ask(revision: str) -> None:
            headers = {"Knative-Serving-Namespace": "default", "Knative-Serving-Revision": revision}
            burst.asked[revision] = time.time()
            try:
                async with client.get(f"http://{activator}/", headers=headers) as response:
                    body = await response.text()
                    outcome = str(response.status)
            except (OSError, TimeoutError, aiohttp.ClientError) as error:
                outcome = type(error).__name__
            burst.outcomes[outcome] += 1
            if outcome == "200":
                burst.seen["answered"][revision] = time.time()
                burst.bodies[revision] = body

        await asyncio.gather(*(ask(revision) for revision in revisions))
    if catch_up_s:
        await observer.caught_up(burst, catch_up_s)
    await asyncio.sleep(linger_s)
    observer.burst = None
    return burst


def read_logs(logs: Path, burst: Burst) -> None:
    """What the autoscaler's logs say of the burst."""
    for file in logs.glob("pod-knative-serving-autoscaler-*.log"):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if found := logged(line):
                revision, at = found
                if at >= burst.asked.get(revision, float("inf")):
                    burst.seen["logged"].setdefault(revision, at)


def logged(line: str) -> tuple[str, float] | None:
    """The revision that the line says is scaled from zero, and when."""
    try:
        entry = json.loads(line)
        found = _SCALES.search(entry["message"])
        at = datetime.datetime.fromisoformat(entry["timestamp"]).timestamp()
    except (ValueError, KeyError, TypeError):
        return None  # what Go's runtime or ours prints besides
    if found is None:
        return None
    revision = found[1] or entry.get("knative.dev/key", "").rpartition("/")[2]
    return (revision, at) if revision else None


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def explain(title: str, bursts: Sequence[Burst], cpu: Counter[str]) -> None:
    """Prints where the time and the CPU of these bursts went. `cpu`: microseconds by program."""
    print(f"{title}: since the request, p50 and p99 in s")
    for step in STEPS:
        times = sorted(s for burst in bursts for s in burst.steps_s(step))
        if times:
            print(f"  {step:10} {percentile(times, 0.5):7.3f} {percentile(times, 0.99):7.3f}")
    starts = sum(len(burst.asked) for burst in bursts)
    shares = ", ".join(f"{name} {us / starts / 1000:.0f}" for name, us in cpu.most_common(9))
    print(f"  CPU ms per revision: {cpu.total() / starts / 1000:.0f} ({shares})")
    made, running = sum(len(b.made) for b in bursts), sum(len(b.began) for b in bursts)
    print(f"  pods that ReplicaSets made: {made}, of which containers began: {running}")
