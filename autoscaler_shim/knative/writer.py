"""Kubernetes, written behind: statuses, ServerlessServices and Metrics go out at a bounded rate, latest state only.

Nobody waits for these writes, and one that isn't urgent waits a moment for what may replace it: a revision that
wakes is ready before anybody reads that it is being woken. In a burst from zero it waits longer, and in a long one
few go out: each costs the API server, Knative's webhooks and its controllers a good part of what a start does. What
was decided holds here at once (`status()` answers with what is yet to be written), and while the API server is away
it stays here and is repeated. Scales don't come this way: a revision at zero must not wait behind anything. Which
objects may be written is asked again at the moment of writing, so a lost Lease takes back what is still in line; and
all is written over the latest version that is known here, so whoever has missed something is refused until it has
seen that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from kserve_ext.api.knative import children as knative_children
from kserve_ext.api.knative.conditions import Document
from kserve_ext.core.token_bucket import TokenBucket
from kserve_ext.kube.client import AlreadyExists, Client, NotFound
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import Kind
from kserve_ext.kube.queue import WorkQueue

log = logging.getLogger(__name__)

QPS = 50.0
BURST = 100
WORKERS = 8
#: How long a write waits that is not urgent,
MOMENT_S = 0.7
#: and at least, in a burst from zero; then so many go out each second.
DEFERRED_S = 30.0
OVERDUE_QPS = 4.0


class Target(NamedTuple):
    """What one line of the queue is about. `kind` says whether it is a status, or an object of our own making."""

    kind: Kind
    key: str  # namespace/name, and so whose bucket it is in
    subresource: str = ""


class Child(NamedTuple):
    """An object that should be like this: made where there is none, its spec changed where it differs."""

    owner: Document
    made: Document
    #: of time.monotonic: until when it waits if there is more important to do; 0: it doesn't wait
    due: float
    #: the version that came back from writing it; None: not written yet
    version: int | None = None


class Status(NamedTuple):
    status: Document
    due: float
    version: int | None = None


class Writer:
    def __init__(
        self,
        client: Client,
        copies: dict[Kind, Informer],
        may: Callable[[str], bool],
        busy: Callable[[], bool] = bool,
    ) -> None:
        """`may`: whether objects of this key are this replica's to write; `busy`: whether the API server has more
        important things to do."""
        self._client = client
        self._copies = copies
        self._may = may
        self._busy = busy
        self._stopping = False
        self._bucket = TokenBucket(QPS, BURST)
        self._overdue = TokenBucket(OVERDUE_QPS, 1)
        self._children: dict[Target, Child] = {}
        self._statuses: dict[Target, Status] = {}
        #: the versions that came back from writing, of objects whose copy here is older
        self._versions: dict[tuple[Kind, str], int] = {}
        self._queue: WorkQueue[Target] = WorkQueue(self._write, WORKERS, name="writes")
        self.counters = self._queue.counters

    def start(self) -> None:
        self._queue.start()

    async def stop(self, patience_s: float) -> None:
        """What is in line or waits goes out first, if it can within so many seconds."""
        self._stopping = True
        for pending in (self._children, self._statuses):
            for target, wish in pending.items():
                if wish.version is None:
                    self._queue.add(target)
        try:
            async with asyncio.timeout(patience_s):
                await self._queue.idle()
        except TimeoutError:
            log.warning("%d writes are left for the next holder", self._queue.depth)
        await self._queue.stop()

    def status(self, kind: Kind, obj: Document) -> Document:
        """The latest status: what we decided, until the server's own copy has come as far."""
        target = Target(kind, _key(obj), "status")
        pending = self._statuses.get(target)
        if pending is None:
            return obj.get("status") or {}
        if _caught_up(obj, pending.version):
            del self._statuses[target]
            return obj.get("status") or {}
        return pending.status

    def put_status(self, kind: Kind, obj: Document, status: Document, urgent: bool = True) -> None:
        if status == self.status(kind, obj):
            return
        target = Target(kind, _key(obj), "status")
        self._statuses[target] = Status(status, _due(self._statuses.get(target), urgent))
        self._queue.add_after(target, 0.0 if urgent else MOMENT_S)

    def put_child(self, kind: Kind, owner: Document, made: Document, urgent: bool = True) -> None:
        """The whole of a new object, and of an old one its spec."""
        target = Target(kind, _key(made))
        current = self._current(target)
        pending = self._children.get(target)
        if pending is not None and current is not None and _caught_up(current, pending.version):
            pending = None
            del self._children[target]
        if pending is not None and pending.made["spec"] == made["spec"]:
            return  # in line already, or written and not seen here yet
        if pending is None and current is not None and current.get("spec") == made["spec"]:
            return
        self._children[target] = Child(owner, made, _due(pending, urgent))
        self._queue.add_after(target, 0.0 if urgent else MOMENT_S)

    def forget(self, key: str) -> None:
        """The objects of this key are gone, or somebody else's."""
        for kind in self._copies:
            self._versions.pop((kind, key), None)
            for target in (Target(kind, key), Target(kind, key, "status")):
                self._children.pop(target, None)
                self._statuses.pop(target, None)
                self._queue.forget(target)

    # --- inside

    async def _write(self, target: Target) -> float | None:
        if not self._may(target.key):
            self._drop(target)
            return None
        if self._may_wait(target):
            return MOMENT_S
        wait_s = self._bucket.take(time.monotonic())
        if wait_s > 0:
            await asyncio.sleep(wait_s)
            if not self._may(target.key):
                self._drop(target)
                return None
        try:
            if target.subresource:
                await self._write_status(target)
            else:
                await self._write_child(target)
        except NotFound:
            log.info("%s %s is gone, nothing to write", target.kind.kind, target.key)
            self._drop(target)
        return None

    def _may_wait(self, target: Target) -> bool:
        wish = self._statuses.get(target) if target.subresource else self._children.get(target)
        if wish is None or wish.version is not None or not wish.due or self._stopping or not self._busy():
            return False
        now = time.monotonic()
        return now < wish.due or self._overdue.take_now(now) > 0

    def _drop(self, target: Target) -> None:
        self._children.pop(target, None)
        self._statuses.pop(target, None)

    async def _write_status(self, target: Target) -> None:
        pending = self._statuses.get(target)
        if pending is None or pending.version is not None:
            return
        current = self._current(target)
        if current is None:
            self._drop(target)
            return
        namespace, _, name = target.key.partition("/")
        patch = {
            "metadata": {"resourceVersion": self._latest(target, current)},
            "status": pending.status,
        }
        written = await self._client.patch(target.kind, namespace, name, patch, subresource="status")
        self._versions[target.kind, target.key] = _version(written)
        if self._statuses.get(target) is pending:  # else something newer waits already
            self._statuses[target] = pending._replace(version=_version(written))

    async def _write_child(self, target: Target) -> None:
        child = self._children.get(target)
        if child is None or child.version is not None:
            return
        namespace, _, name = target.key.partition("/")
        current = self._current(target)
        written: Document | None = None
        if current is None:
            try:
                written = await self._client.create(target.kind, child.made)
            except AlreadyExists:
                current = await self._client.get(target.kind, namespace, name)
        if current is not None:
            if not knative_children.owned(current, child.owner):
                self._children.pop(target, None)
                return
            patch = {
                "metadata": {"resourceVersion": self._latest(target, current)},
                "spec": child.made["spec"],
            }
            written = await self._client.patch(target.kind, namespace, name, patch)
        if written is None:
            return
        self._versions[target.kind, target.key] = _version(written)
        if self._children.get(target) is child:
            self._children[target] = child._replace(version=_version(written))

    def _latest(self, target: Target, current: Document) -> str:
        """The version of the copy, or of our own last write until the copy has come as far."""
        written = self._versions.get((target.kind, target.key), 0)
        if written <= _version(current):
            self._versions.pop((target.kind, target.key), None)
        return str(max(written, _version(current)))

    def _current(self, target: Target) -> Document | None:
        namespace, _, name = target.key.partition("/")
        return self._copies[target.kind].get(namespace, name)


def _key(obj: Document) -> str:
    metadata = obj["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}"


def _version(obj: Document) -> int:
    """Versions of one kind grow, and Kubernetes lets them be compared."""
    return int(obj["metadata"]["resourceVersion"])


def _due(former: Child | Status | None, urgent: bool) -> float:
    """What replaces a wish that hasn't gone out waits no longer than that would have."""
    due = 0.0 if urgent else time.monotonic() + DEFERRED_S
    return due if former is None or former.version is not None else min(due, former.due)


def _caught_up(obj: Document, version: int | None) -> bool:
    return version is not None and _version(obj) >= version
