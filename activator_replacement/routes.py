"""Host names and Knative's two headers -> the revision that a request is for, from the store's routes and revisions.

The table follows the store; when the store is away the last one holds. A route with several targets is split by
percent in turn, so that any hundred requests in a row are split exactly. Nothing here decides who serves a request.
Looking up takes the same time however many services there are: what takes all of them is kept until one changes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final

import msgspec

from activator_replacement.refusals import NEVER
from activator_replacement.seam import Refusal
from kserve_ext.core.facts import Revision
from kserve_ext.core.ids import RevisionKey
from kserve_ext.store import Store

#: What a client says who has no name for the service: an address of this machine.
_ADDRESS: Final = re.compile(rb"localhost|[0-9.]+|\[[0-9a-fA-F:.]+\]")
_NOT_LOADED: Final = Refusal(503, "this Dispatch function has not heard of all services yet: try again", 1.0)
_Targets = tuple[tuple[RevisionKey, int], ...]
#: None: the service is stopped
_decode_targets = msgspec.msgpack.Decoder(_Targets | None).decode
_decode_revision = msgspec.msgpack.Decoder(Revision).decode


class _Route:
    """Targets with their percents, taken in turn (the one most behind its share goes next)."""

    __slots__ = ("_credit", "targets")

    def __init__(self, targets: _Targets) -> None:
        self.targets = targets
        self._credit = [0] * len(targets)

    def next(self) -> RevisionKey:
        if len(self.targets) == 1:
            return self.targets[0][0]
        for k, (_, percent) in enumerate(self.targets):
            self._credit[k] += percent
        chosen = max(range(len(self.targets)), key=self._credit.__getitem__)
        self._credit[chosen] -= sum(percent for _, percent in self.targets)
        return self.targets[chosen][0]


class Routes:
    """What the store says.

    `on_revision(key, revision | None, created)` hears of each revision that comes or goes, `on_route` of each that
    gets or loses the traffic of its service.
    """

    def __init__(
        self,
        on_revision: Callable[[RevisionKey, Revision | None, bool], None],
        on_route: Callable[[RevisionKey], None] = lambda key: None,
    ) -> None:
        self.revisions: dict[RevisionKey, Revision] = {}
        #: hosts whose route names a revision, by revision; no empty sets
        self.routed: dict[RevisionKey, set[bytes]] = {}
        #: set when both routes and revisions have come from the store once
        self.complete = asyncio.Event()
        self._on_revision = on_revision
        self._on_route = on_route
        self._routes: dict[bytes, _Route] = {}
        self._scanned: set[str] = set()
        #: prefill revisions by group
        self._prefill: dict[str, dict[RevisionKey, Revision]] = {}
        #: hosts of services without a revision that could serve; True: they are stopped
        self._closed: dict[bytes, bool] = {}
        #: found by looking at all routes; None = not since the last change
        self._sole: tuple[_Route | None] | None = None
        self._names: str | None = None

    def follow(self, store: Store) -> None:
        store.watch("routes/", self._all_routes, self._route_changed)
        store.watch("revisions/", self._all_revisions, self._revision_changed)

    @property
    def loaded(self) -> bool:
        return self.complete.is_set()

    def prefill_of(self, group: str) -> Revision | None:
        """The prefill revision of a group that has its service's traffic; the newest where no route names one."""
        found = self._prefill.get(group, {})
        serving = [revision for key, revision in found.items() if key in self.routed]
        return max(serving or found.values(), key=lambda r: (r.created_at, r.generation), default=None)

    def successor(self, gone: Revision) -> Revision | None:
        """The revision that has the traffic of a deleted one's service now. Looks at all: for deletions only."""
        for key in self.routed:
            revision = self.revisions.get(key)
            if revision is not None and revision.service == gone.service and key != gone.key:
                return revision
        return None

    def decode_host(self, group: str) -> str:
        """A host of the group's decode service, "" if there is none. Looks at all routes: for refusals only."""
        for host, route in sorted(self._routes.items()):
            for target, _ in route.targets:
                revision = self.revisions.get(target)
                if revision is not None and revision.group == group and revision.role == "decode":
                    return host.decode("latin-1")
        return ""

    # --- the seam's resolve

    def resolve(self, host: bytes, namespace: bytes | None, revision: bytes | None) -> RevisionKey | Refusal:
        if revision is not None:
            return self._named(namespace or b"default", revision)
        route = self._routes.get(host)
        if route is not None:
            return route.next()
        bare = (
            host.partition(b":")[0].lower() if not host.startswith(b"[") else host.partition(b"]")[0] + b"]"
        )
        route = self._routes.get(bare)
        if route is None and _ADDRESS.fullmatch(bare):
            route = self._only()
        if route is not None:
            return route.next()
        return self._unknown(host)

    def _named(self, namespace: bytes, name: bytes) -> RevisionKey | Refusal:
        key = RevisionKey(f"{namespace.decode('latin-1')}/{name.decode('latin-1')}")
        if key in self.revisions:
            return key
        if not self.loaded:
            return _NOT_LOADED
        return Refusal(404, f"no revision {key}: see `galaxy get isvc -A` for those there are")

    def _only(self) -> _Route | None:
        """The route of the only service, when there is exactly one that takes requests."""
        if self._sole is None:
            found = [
                (self.revisions[t].service, r)
                for r in self._routes.values()
                for t, _ in r.targets
                if self._open(t)
            ]
            self._sole = (found[0][1] if len({service for service, _ in found}) == 1 else None,)
        return self._sole[0]

    def _open(self, key: RevisionKey) -> bool:
        revision = self.revisions.get(key)
        return revision is not None and revision.role != "prefill"

    def _unknown(self, host: bytes) -> Refusal:
        if not self.loaded:
            return _NOT_LOADED
        stopped = self._closed.get(host.partition(b":")[0].lower())
        if stopped is not None:
            service = f"the service of {host.decode('latin-1')}"
            if stopped:
                why = f"{service} is stopped by its annotation serving.kserve.io/stop: remove it, or set it to false"
                return Refusal(503, why, NEVER)
            why = f"{service} has no revision that can serve: see `galaxy get isvc -A -o wide`"
            return Refusal(503, why, 5.0)
        if not self._routes and not self._closed:
            return Refusal(404, "there is no service yet: apply one with `galaxy apply -f FILE`")
        if self._names is None:
            known = sorted(name.decode("latin-1") for name in {*self._routes, *self._closed})
            more = f" and {len(known) - 10} more" if len(known) > 10 else ""
            self._names = ", ".join(known[:10]) + more
        name = host.decode("latin-1")
        return Refusal(404, f"no service has the host {name!r}: set the Host header; known are {self._names}")

    # --- the store's side

    def _all_routes(self, items: dict[str, bytes]) -> None:
        for gone in self._routes.keys() - {key.partition("/")[2].encode() for key in items}:
            self._route(gone, ())
        self._closed = {}
        self._sole = self._names = None
        for key, value in items.items():
            self._route_changed(key, value)
        self._scan_came("routes")

    def _route_changed(self, key: str, value: bytes | None) -> None:
        host = key.partition("/")[2].encode()
        targets = _decode_targets(value) if value is not None else ()
        self._closed.pop(host, None)
        self._route(host, targets or ())
        if not targets and value is not None:
            self._closed[host] = targets is None
        self._sole = self._names = None

    def _route(self, host: bytes, targets: _Targets) -> None:
        before = self._routes.pop(host, None)
        was = {key for key, _ in before.targets} if before is not None else set()
        now = {key for key, _ in targets}
        if targets:
            self._routes[host] = _Route(targets)
        for key in now - was:
            self.routed.setdefault(key, set()).add(host)
        for key in was - now:
            self.routed[key].discard(host)
            if not self.routed[key]:
                del self.routed[key]
        for key in sorted(now ^ was):
            self._on_route(key)

    def _all_revisions(self, items: dict[str, bytes]) -> None:
        for gone in self.revisions.keys() - {RevisionKey(k.partition("/")[2]) for k in items}:
            self._take(gone, None, created=False)
        for key, value in items.items():
            self._take(RevisionKey(key.partition("/")[2]), value, created=False)
        self._scan_came("revisions")

    def _scan_came(self, prefix: str) -> None:
        self._scanned.add(prefix)
        if len(self._scanned) == 2:
            self.complete.set()

    def _revision_changed(self, key: str, value: bytes | None) -> None:
        self._take(RevisionKey(key.partition("/")[2]), value, created=True)

    def _take(self, key: RevisionKey, value: bytes | None, *, created: bool) -> None:
        if value is None:
            gone = self.revisions.pop(key, None)
            if gone is None:
                return
            if gone.role == "prefill":
                self._prefill[gone.group].pop(key)
                if not self._prefill[gone.group]:
                    del self._prefill[gone.group]
            self._sole = None
            self._on_revision(key, None, False)
        elif key not in self.revisions:  # a revision never changes
            revision = self.revisions[key] = _decode_revision(value)
            if revision.role == "prefill":
                self._prefill.setdefault(revision.group, {})[key] = revision
            self._sole = None
            self._on_revision(key, revision, created)
