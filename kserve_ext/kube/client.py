"""A client of the Kubernetes API server on asyncio: plain dicts in and out, one typed error a cause.

It decides nothing about objects. What it takes care of is what every caller would have to: credentials that change,
lists in pages, 429 and Retry-After, connections that died in silence, and how long the server has been away. Like
client-go's rest client, except that a refused request is repeated only a few times: work queues do the rest.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple

import aiohttp
import msgspec
from yarl import URL

from kserve_ext.core.token_bucket import TokenBucket
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

log = logging.getLogger(__name__)

#: An object as JSON has it.
KubeObject = dict[str, Any]
Items = list[KubeObject]
Patch = KubeObject | Items

MERGE_PATCH: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"  # JSON is YAML

REQUEST_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
PAGE = 500
TRIES = 4
MOST_RETRY_AFTER_S = 10.0
#: A watch ends after this long (at random within it, so that not all return at once) and is continued.
WATCH_S = (300.0, 600.0)
#: The server sends a bookmark about once a minute; a watch without a byte for this long is continued anew.
WATCH_IDLE_S = 150.0
#: Seconds of silence, between probes, and number of probes before the kernel gives a peer up.
KEEP_ALIVE = (15, 5, 3)


class Listed(NamedTuple):
    items: list[KubeObject]
    resource_version: str  # where a watch continues


class WatchEvent(NamedTuple):
    type: str  # ADDED, MODIFIED, DELETED or BOOKMARK
    object: KubeObject


class Client:
    """One session with one API server. Make it where the loop runs; close() it."""

    def __init__(self, access: Access, *, qps: float = 0.0, burst: int = 0, user_agent: str = "") -> None:
        """qps 0: as fast as the server likes."""
        self.access = access
        self.requests = 0
        self.last_contact = time.monotonic()
        self._failing_since: float | None = None
        self._user_agent = user_agent or "kserve-galaxy"
        self._bucket = TokenBucket(qps, burst or max(1, int(qps * 2))) if qps else None
        self._session: aiohttp.ClientSession | None = None

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
        if self._session is not None:
            await self._session.close()
            self._session = None

    def away_s(self) -> float:
        """Since when nothing but failures has come from the server, in seconds; 0 while it answers."""
        return 0.0 if self._failing_since is None else time.monotonic() - self._failing_since

    # --- verbs

    async def get(self, kind: Kind, namespace: str, name: str, subresource: str = "") -> KubeObject:
        return await self.request("GET", kind.path(namespace, name, subresource))

    async def list(self, kind: Kind, namespace: str = "", labels: str = "", fields: str = "") -> Listed:
        """All objects, as of one moment; `labels` and `fields` are selectors."""
        try:
            return await self._list(kind, namespace, labels, fields, PAGE)
        except Gone:  # the snapshot that the pages come from expired: all in one answer
            return await self._list(kind, namespace, labels, fields, 0)

    async def create(self, kind: Kind, obj: KubeObject) -> KubeObject:
        namespace = str(obj["metadata"].get("namespace", ""))
        return await self.request("POST", kind.path(namespace), body=_complete(kind, obj))

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
    ) -> AsyncGenerator[WatchEvent, None]:
        """Changes after `resource_version`, until the server ends the watch or says nothing for `idle_s`.

        Raises Gone when the history no longer reaches back, Unavailable when the connection breaks. BOOKMARK events
        carry nothing but the resourceVersion to continue from.
        """
        params = _selectors(labels, fields)
        params |= {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(int(random.uniform(*WATCH_S))),
        }
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=idle_s)
        response = await self._send("GET", kind.path(namespace), params, None, "", limits)
        try:
            if response.status != 200:
                raise await self._refusal(response)
            async for line in self._lines(response):
                yield _event_of(line)
        finally:
            response.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> KubeObject:
        """One request with a JSON answer. What the server refuses for now (429, Retry-After) is repeated a little."""
        content = None if body is None else msgspec.json.encode(body)
        answer = await self._answer(method, path, params or {}, content, content_type)
        value = _decoded(answer)
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

    async def _answer(
        self, method: str, path: str, params: Mapping[str, str], content: bytes | None, content_type: str
    ) -> bytes:
        limits = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        tries = TRIES
        while True:
            response = await self._send(method, path, params, content, content_type, limits)
            if response.status < 400:
                try:
                    answer = await response.read()
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    raise self._failed(error) from error
                return answer
            refusal = await self._refusal(response)
            tries -= 1
            wait_s = refusal.retry_after_s
            if not 0 < wait_s <= MOST_RETRY_AFTER_S or tries == 0:
                raise refusal
            await asyncio.sleep(wait_s * random.uniform(1.0, 1.2))

    async def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        content: bytes | None,
        content_type: str,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """The answer's head; a token that the server doesn't take any more is read once more."""
        if self._bucket is not None and (wait_s := self._bucket.take(time.monotonic())) > 0:
            await asyncio.sleep(wait_s)
        endpoint = self.access.endpoint
        url = URL(endpoint.url + path, encoded=True)
        headers = {"Accept": "application/json"}
        if content is not None:
            headers["Content-Type"] = content_type
        refused: str | None = None
        while True:
            header = await self.access.header(refused)
            if header:
                headers["Authorization"] = header
            self.requests += 1
            try:
                response = await self._open().request(
                    method,
                    url,
                    params=params,
                    data=content,
                    headers=headers,
                    timeout=limits,
                    allow_redirects=False,
                    server_hostname=endpoint.server_name or None,
                    proxy=endpoint.proxy or None,
                )
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise self._failed(error) from error
            if response.status != 401 or refused is not None:
                if response.status < 500:  # above, it may be a balancer that speaks for a dead server
                    self._contact()
                return response
            refused = header
            response.release()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # No limit on connections: each watch holds one, and workers and the rate bound the rest.
            connector = aiohttp.TCPConnector(
                limit=0, ssl=self.access.endpoint.tls or True, keepalive_timeout=60, socket_factory=_socket
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                headers={"User-Agent": self._user_agent},
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def _lines(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The lines of a body without end; one may be far longer than a read buffer."""
        rest = b""
        chunks = response.content.iter_any()
        while True:
            try:
                chunk = await anext(chunks)
            except (StopAsyncIteration, aiohttp.SocketTimeoutError):
                return
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise self._failed(error) from error
            self._contact()
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line:
                    yield line

    async def _refusal(self, response: aiohttp.ClientResponse) -> KubeError:
        try:
            content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._failed(error) from error
        if response.status >= 500:
            self._fails()
        answer = _decoded(content)
        after = response.headers.get("Retry-After", "")
        return error_of(
            response.status,
            answer if isinstance(answer, dict) else {},
            float(after) if after.isdigit() else 0.0,
        )

    def _failed(self, error: Exception) -> Unavailable:
        self._fails()
        what = str(error) or type(error).__name__
        return Unavailable(0, "NoAnswer", f"API server {self.access.endpoint.url}: {what}")

    def _fails(self) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()

    def _contact(self) -> None:
        self.last_contact = time.monotonic()
        self._failing_since = None


def _socket(address: Any) -> socket.socket:
    """A socket on which a peer that vanished is noticed, even if all that we do is to wait for its events."""
    family, kind, protocol = address[:3]
    made = socket.socket(family, kind, protocol)
    idle, interval, count = KEEP_ALIVE
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * (idle + interval * count))
    return made


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
