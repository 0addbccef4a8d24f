"""A client of the Kubernetes API server on asyncio: plain dicts in and out, one typed error a cause.

It decides nothing about objects; it knows how the API names them, pages its lists and tells changes. How a request
gets there is session.py's.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Final, NamedTuple

import msgspec

from kserve_ext.kube.access import Access, from_environment
from kserve_ext.kube.errors import (
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    Unavailable,
    error_of,
)
from kserve_ext.kube.kinds import Kind
from kserve_ext.kube.session import Session

__all__ = [
    "AlreadyExists",
    "Client",
    "Conflict",
    "Gone",
    "Invalid",
    "Kind",
    "KubeError",
    "KubeObject",
    "Listed",
    "NotFound",
    "Unavailable",
    "WatchEvent",
]

#: An object as JSON has it.
KubeObject = dict[str, Any]
Items = list[KubeObject]
Patch = KubeObject | Items

MERGE_PATCH: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"  # JSON is YAML

PAGE = 500
#: A watch ends after this long (at random within it, so that not all return at once) and is continued.
WATCH_S = (300.0, 600.0)
#: The server sends a bookmark about once a minute; a watch without a byte for this long is continued anew.
WATCH_IDLE_S = 150.0


class Listed(NamedTuple):
    items: list[KubeObject]
    resource_version: str  # where a watch continues


class WatchEvent(NamedTuple):
    type: str  # ADDED, MODIFIED, DELETED or BOOKMARK
    object: KubeObject


class Client:
    """One session with one API server. Make it where the loop runs; close() it."""

    def __init__(self, access: Access, *, qps: float = 0.0, burst: int = 0, user_agent: str = "") -> None:
        """qps 0: as fast as the server likes; burst 0: twice qps."""
        self.session = Session(access, qps, burst, user_agent)

    @classmethod
    def from_environment(cls, *, qps: float = 0.0, burst: int = 0, user_agent: str = "") -> Client:
        """KUBECONFIG, else the pod's service account, else ~/.kube/config. Raises AccessError."""
        return cls(from_environment(), qps=qps, burst=burst, user_agent=user_agent)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self.session.close()

    @property
    def last_contact(self) -> float:
        """Of time.monotonic: the last time that the server said anything."""
        return self.session.last_contact

    def away_s(self) -> float:
        """Since when nothing but failures has come from the server, in seconds; 0 while it answers."""
        return self.session.away_s()

    # --- verbs

    async def get(self, kind: Kind, namespace: str, name: str, subresource: str = "") -> KubeObject:
        return await self.request("GET", kind.path(namespace, name, subresource))

    async def list(self, kind: Kind, namespace: str = "", labels: str = "", fields: str = "") -> Listed:
        """All objects, as of one moment; `labels` and `fields` are selectors."""
        try:
            return await self._list(kind, namespace, labels, fields, PAGE)
        except Gone:  # the snapshot that the pages come from expired: all in one answer
            return await self._list(kind, namespace, labels, fields, 0)

    async def create(
        self, kind: Kind, obj: KubeObject, params: Mapping[str, str] | None = None
    ) -> KubeObject:
        namespace = str(obj["metadata"].get("namespace", ""))
        return await self.request("POST", kind.path(namespace), params=params, body=_complete(kind, obj))

    async def replace(self, kind: Kind, obj: KubeObject, subresource: str = "") -> KubeObject:
        """Conflict unless the object is still the one that was read (by its resourceVersion)."""
        metadata = obj["metadata"]
        path = kind.path(str(metadata.get("namespace", "")), str(metadata["name"]), subresource)
        return await self.request("PUT", path, body=obj if subresource == "scale" else _complete(kind, obj))

    async def patch(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        patch: Patch,
        subresource: str = "",
        content_type: str = MERGE_PATCH,
        params: Mapping[str, str] | None = None,
    ) -> KubeObject:
        path = kind.path(namespace, name, subresource)
        return await self.request("PATCH", path, params=params, body=patch, content_type=content_type)

    async def apply(self, kind: Kind, obj: KubeObject, manager: str, *, force: bool = False) -> KubeObject:
        """Server-side apply: creates, or changes the fields that `obj` names and owns them as `manager`."""
        metadata = obj["metadata"]
        params = {"fieldManager": manager, "force": "true" if force else "false"}
        namespace, name = str(metadata.get("namespace", "")), str(metadata["name"])
        return await self.patch(kind, namespace, name, _complete(kind, obj), "", APPLY_PATCH, params)

    async def delete(
        self, kind: Kind, namespace: str, name: str, *, uid: str = "", propagation: str = ""
    ) -> KubeObject:
        """`uid`: only that very object, Conflict for a namesake; `propagation`: Foreground, Background, Orphan."""
        options: KubeObject = {}
        if uid:
            options["preconditions"] = {"uid": uid}
        if propagation:
            options["propagationPolicy"] = propagation
        return await self.request("DELETE", kind.path(namespace, name), body=options or None)

    async def watch(
        self,
        kind: Kind,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        resource_version: str = "",
        idle_s: float = WATCH_IDLE_S,
        on_open: Callable[[], None] = lambda: None,
    ) -> AsyncGenerator[WatchEvent, None]:
        """Changes after `resource_version`, until the server ends the watch or says nothing for `idle_s`.

        Raises Gone when the history no longer reaches back, Unavailable when the connection breaks. BOOKMARK events
        carry nothing but the resourceVersion to continue from. on_open: it is under way, if still without news.
        """
        params = _selectors(labels, fields)
        params |= {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(int(random.uniform(*WATCH_S))),
        }
        async with aclosing(self.session.follow(kind.path(namespace), params, idle_s, on_open)) as lines:
            async for line in lines:
                yield _event_of(line)

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> KubeObject:
        """One request with a JSON answer, for paths that the verbs don't know."""
        content = None if body is None else msgspec.json.encode(body)
        value = _decoded(await self.session.ask(method, path, params or {}, content, content_type))
        if not isinstance(value, dict):
            raise KubeError(0, "BadAnswer", f"{method} {path}: no JSON object in the answer")
        return value

    # --- inside

    async def _list(self, kind: Kind, namespace: str, labels: str, fields: str, limit: int) -> Listed:
        params = _selectors(labels, fields)
        if limit:
            params["limit"] = str(limit)
        items: Items = []
        while True:
            page = await self.request("GET", kind.path(namespace), params=params)
            items += page.get("items") or ()
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                break
            params["continue"] = metadata["continue"]
        for item in items:  # lists of built-in kinds leave these out
            item.setdefault("apiVersion", kind.api_version)
            item.setdefault("kind", kind.kind)
        return Listed(items, str(metadata.get("resourceVersion", "")))


def _selectors(labels: str, fields: str) -> dict[str, str]:
    params = {}
    if labels:
        params["labelSelector"] = labels
    if fields:
        params["fieldSelector"] = fields
    return params


def _complete(kind: Kind, obj: KubeObject) -> KubeObject:
    """With apiVersion and kind, which custom resources must have."""
    return {"apiVersion": kind.api_version, "kind": kind.kind, **obj}


def _decoded(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        return None


def _event_of(line: bytes) -> WatchEvent:
    event = _decoded(line)
    if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
        raise Unavailable(0, "BadAnswer", "a watch event that is no JSON object")
    if event["type"] == "ERROR":
        status = event["object"]
        raise error_of(int(status.get("code") or 500), status)
    return WatchEvent(event["type"], event["object"])
