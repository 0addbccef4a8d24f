"""A Kubernetes API server for tests, on a real socket: `async with ApiServer() as server:`.

Any kind is known by its path, none needs to be declared. Beside HTTP a test has its own hand on it: put() and
remove() change objects, cut() breaks watches, compact() forgets history, down() and up() take the server away, fail()
answers requests with an error, hold() keeps them waiting, until() waits for something to be true of it.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from aiohttp import web

from kserve_ext.kube.access import Access, Endpoint
from kserve_ext.kube.client import Client
from kserve_ext.kube.kinds import Kind
from tests.support.api_objects import Change, Key, Obj, Objects, Refused, Selector, json_patch, merge_patch

PATH = re.compile(r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)/(?P<rest>.+)")


class Target(NamedTuple):
    kind: Kind
    namespace: str
    name: str
    subresource: str

    @property
    def key(self) -> Key:
        return self.namespace, self.name


class Failure(NamedTuple):
    status: int
    reason: str
    retry_after: int
    method: str
    path: str


class Watch:
    """One watch under way: what is yet to be sent on it."""

    def __init__(self, kind: Kind, selector: Selector, request: web.Request) -> None:
        self.kind = kind
        self.selector = selector
        self.request = request
        self.events: asyncio.Queue[Obj | None] = asyncio.Queue()  # None: the end

    def take(self, kind: Kind, change: Change) -> None:
        if (kind.group, kind.plural) != (self.kind.group, self.kind.plural):
            return
        was, now = self.selector.takes(change.old), self.selector.takes(change.new) and not change.deleted
        if now:
            self.events.put_nowait({"type": "MODIFIED" if was else "ADDED", "object": change.new})
        elif was:
            self.events.put_nowait({"type": "DELETED", "object": change.new})


class ApiServer:
    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.objects = Objects(self._changed)
        self.requests: list[str] = []  # "PATCH /apis/..."
        self.token = ""  # not "": requests must carry it
        self.reviewed: dict[
            str, Obj
        ] = {}  # token -> the status that a TokenReview of it gets; others are unknown
        self.most_per_page = 0  # > 0: a list with a limit comes in pages no larger than this
        self.pages_expire = False  # whether every page but the first gets 410
        self.watches: set[Watch] = set()
        self.failures: list[Failure] = []
        self._pages: dict[str, list[Obj]] = {}
        self._open = asyncio.Event()
        self._open.set()
        self._waiters: list[tuple[Callable[[], Any], asyncio.Future[None]]] = []
        self._runner: web.AppRunner | None = None
        self._port = 0

    # --- life

    async def __aenter__(self) -> ApiServer:
        await self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.down()

    async def up(self) -> None:
        """Starts, or comes back at the same address with the same objects."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True, ssl_context=self.tls)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def down(self) -> None:
        """Goes away: connections break, new ones are refused."""
        self.release()
        if self._runner is not None:
            self.cut()
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._port}"

    def client(self, **options: Any) -> Client:
        """A client of this server; close it."""
        return Client(Access(Endpoint(self.url)), **options)

    # --- the test's hand

    def put(self, kind: Kind, obj: Obj) -> Obj:
        """Creates or replaces all of an object, status included."""
        return self.objects.put(kind, obj["metadata"].get("namespace", ""), obj)

    def remove(self, kind: Kind, namespace: str, name: str) -> None:
        self.objects.delete(kind, (namespace, name))

    def get(self, kind: Kind, namespace: str, name: str) -> Obj | None:
        return self.objects.of(kind).get((namespace, name))

    def fail(
        self,
        status: int,
        times: int = 1,
        *,
        reason: str = "",
        retry_after: int = 0,
        method: str = "",
        path: str = "",
    ) -> None:
        """Answers the next `times` requests (with this method, with this in their path or query) with an error."""
        self.failures += [Failure(status, reason, retry_after, method, path)] * times

    def hold(self) -> None:
        """Requests wait until release(); watches under way go on."""
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def cut(self, *, politely: bool = False) -> None:
        """Ends all watches: as a server does after timeoutSeconds, or by breaking their connections."""
        for watch in list(self.watches):
            watch.events.put_nowait(None)
            if not politely and watch.request.transport is not None:
                watch.request.transport.abort()

    def compact(self) -> None:
        """Forgets the history up to now: watches from before it and pages begun before it get 410."""
        self.objects.compact()
        self._pages.clear()

    def bookmark(self) -> None:
        """Sends every watch the version of now."""
        metadata = {"resourceVersion": str(self.objects.version)}
        for watch in self.watches:
            watch.events.put_nowait({"type": "BOOKMARK", "object": {"metadata": metadata}})

    async def until(self, predicate: Callable[[], Any]) -> None:
        """Waits until predicate() holds; it is asked after every request, change, and begin and end of a watch."""
        if not predicate():
            told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((predicate, told))
            await told

    # --- inside

    def _news(self) -> None:
        for predicate, told in list(self._waiters):
            if told.done() or predicate():
                self._waiters.remove((predicate, told))
                if not told.done():
                    told.set_result(None)

    def _changed(self, kind: Kind, change: Change) -> None:
        for watch in self.watches:
            watch.take(kind, change)
        self._news()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        self._news()
        await self._open.wait()
        if not PATH.fullmatch(request.path):
            return web.Response(status=404, text="404 page not found\n")
        try:
            self._refuse(request)
            if request.method == "GET" and request.query.get("watch") == "true":
                return await self._watch(request)
            body = await request.read()
            code, answer = self._answer(request, json.loads(body) if body else None)
            return web.json_response(answer, status=code)
        except Refused as refused:
            return web.json_response(status_of(refused), status=refused.code)
        except _Failing as failing:
            failure = failing.failure
            headers = {"Retry-After": str(failure.retry_after)} if failure.retry_after else {}
            refusal = status_of(Refused(failure.status, failure.reason, "the test said so"))
            return web.json_response(refusal, status=failure.status, headers=headers)
        finally:
            self._news()

    def _refuse(self, request: web.Request) -> None:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            raise Refused(401, "Unauthorized", "Unauthorized")
        for failure in self.failures:
            if failure.method in ("", request.method) and failure.path in request.path_qs:
                self.failures.remove(failure)
                raise _Failing(failure)

    def _answer(self, request: web.Request, body: Any) -> tuple[int, Obj]:
        target = target_of(request.path)
        objects, kind = self.objects, target.kind
        match request.method:
            case "GET" if not target.name:
                return 200, self._list(kind, selector_of(target, request), request)
            case "GET":
                found = objects.get(kind, target.key)
                return 200, scale_of(found) if target.subresource == "scale" else found
            case "POST" if kind.plural == "tokenreviews":
                unknown = {"authenticated": False, "error": "invalid bearer token"}
                return 201, {**body, "status": self.reviewed.get(body["spec"]["token"], unknown)}
            case "POST":
                return 201, objects.create(kind, target.namespace, body)
            case "PUT":
                return 200, self._replace(target, body)
            case "PATCH" if request.query.get("dryRun"):
                return 200, merge_patch(objects.get(kind, target.key), body)
            case "PATCH":
                return self._patch(target, body, request.content_type)
            case "DELETE":
                uid = ((body or {}).get("preconditions") or {}).get("uid", "")
                return 200, objects.delete(kind, target.key, uid)
        raise Refused(405, "MethodNotAllowed", request.method)

    def _replace(self, target: Target, obj: Obj) -> Obj:
        made = self.objects.replace(target.kind, target.key, obj, target.subresource)
        return scale_of(made) if target.subresource == "scale" else made

    def _patch(self, target: Target, patch: Any, content_type: str) -> tuple[int, Obj]:
        if content_type == "application/apply-patch+yaml":
            if target.key not in self.objects.of(target.kind):
                return 201, self.objects.create(target.kind, target.namespace, patch)
        elif content_type not in ("application/merge-patch+json", "application/json-patch+json"):
            raise Refused(415, "UnsupportedMediaType", content_type)
        old = self.objects.get(target.kind, target.key)
        if target.subresource == "scale":
            old = scale_of(old)
        new = json_patch(old, patch) if isinstance(patch, list) else merge_patch(old, patch)
        return 200, self._replace(target, new)

    def _list(self, kind: Kind, selector: Selector, request: web.Request) -> Obj:
        mark = request.query.get("continue", "")
        if mark:
            if self.pages_expire or mark not in self._pages:
                raise Refused(410, "Expired", "The provided continue parameter is too old")
            items, version = self._pages[mark], mark.partition("-")[0]
        else:
            items = [obj for obj in self.objects.of(kind).values() if selector.takes(obj)]
            version = str(self.objects.version)
        limit = int(request.query.get("limit", 0))
        if limit and self.most_per_page:
            limit = min(limit, self.most_per_page)
        page, rest = (items[:limit], items[limit:]) if limit else (items, [])
        metadata = {"resourceVersion": version}
        if rest:
            metadata["continue"] = f"{version}-{len(self._pages)}"
            self._pages[metadata["continue"]] = rest
        bare = [{k: v for k, v in obj.items() if k not in ("apiVersion", "kind")} for obj in page]
        return {"apiVersion": kind.api_version, "kind": "List", "metadata": metadata, "items": bare}

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        target = target_of(request.path)
        watch = Watch(target.kind, selector_of(target, request), request)
        for change in self.objects.changes(target.kind, int(request.query["resourceVersion"] or 0)):
            watch.take(target.kind, change)
        self.watches.add(watch)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            await response.prepare(request)
            self._news()
            while (event := await watch.events.get()) is not None:
                await response.write(json.dumps(event).encode() + b"\n")
                self._news()
        except ConnectionError:
            pass
        finally:
            self.watches.discard(watch)
            self._news()
        return response


class _Failing(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


def target_of(path: str) -> Target:
    match = PATH.fullmatch(path)
    assert match is not None
    parts = match["rest"].split("/")
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2 and parts[2] not in ("status", "finalize"):
        namespace, parts = parts[1], parts[2:]
    plural, name, subresource = (*parts, "", "")[:3]
    kind = Kind(match["group"] or "", match["version"], plural, kind="")  # its name is in the objects
    return Target(kind, namespace, name, subresource)


def selector_of(target: Target, request: web.Request) -> Selector:
    query = request.query
    return Selector(target.namespace, query.get("labelSelector", ""), query.get("fieldSelector", ""))


def scale_of(obj: Obj) -> Obj:
    """The scale subresource of a workload, as autoscaling/v1 has it."""
    spec, status = obj["spec"], obj.get("status") or {}
    labels = ((spec.get("selector") or {}).get("matchLabels")) or {}
    selector = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
    names = ("name", "namespace", "uid", "resourceVersion")
    return {
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": {name: value for name, value in obj["metadata"].items() if name in names},
        "spec": {"replicas": spec.get("replicas", 1)},
        "status": {"replicas": status.get("replicas", 0), "selector": selector},
    }


def status_of(refused: Refused) -> Obj:
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "message": refused.message,
        "reason": refused.reason,
        "code": refused.code,
    }
