"""The admin server: objects under Kubernetes-shaped paths, and what the command `galaxy` asks about the cluster.

Loopback by default, and every request needs the token made of the cluster key, since who may apply an object may run
a command. Errors are Kubernetes' Status objects, with one cause for each problem. Never touches objects itself.
"""

from __future__ import annotations

import hmac
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import product
from typing import Any, Final

from aiohttp import web

from autoscaler_shim.objects.book import Document, ObjectKey, Refused
from autoscaler_shim.objects.desk import Desk
from autoscaler_shim.objects.storage import Away
from kserve_ext.api.access import token
from kserve_ext.api.kserve.resources import KINDS, KindOf, kind_of, kind_remedy
from kserve_ext.api.problems import Findings

MAX_BODY: Final = 4 << 20
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def failure(status: int, reason: str, message: str, findings: Findings | None = None) -> web.Response:
    """A Kubernetes Status object."""
    body: Document = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "message": message,
        "code": status,
    }
    if findings is not None:
        body["details"] = {
            "causes": [
                {"field": p.field, "reason": p.what, "message": str(p), "value": p.value, "remedy": p.remedy}
                for p in findings.problems
            ]
        }
    return web.json_response(body, status=status)


class Admin:
    """Routes of objects; `extra` adds the cluster's own, `look` brings what is known of the cluster up to date."""

    def __init__(
        self, desk: Desk, cluster_key: bytes, look: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.desk = desk
        self._look = look
        self.app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY)
        self._token = token(cluster_key)
        add = self.app.router.add_route
        add("GET", "/healthz", self._healthz)
        groups = dict.fromkeys(kind.group for kind in KINDS)
        for group, place in product(groups, ("", "/namespaces/{namespace}")):
            base = f"/apis/{group}/{{version}}{place}/{{plural}}"
            add("GET", base, self._list)
            add("POST", base, self._create)
            add("GET", base + "/{name}", self._get)
            add("PUT", base + "/{name}", self._apply)
            add("PATCH", base + "/{name}", self._apply)
            add("DELETE", base + "/{name}", self._delete)

    def extra(self, path: str, handler: Handler) -> None:
        self.app.router.add_get(path, handler)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if request.path != "/healthz" and not hmac.compare_digest(given, f"Bearer {self._token}"):
            message = "needs the cluster's token; use the command galaxy, as the user who started the cluster"
            return failure(401, "Unauthorized", message)
        try:
            return await handler(request)
        except Refused as refused:
            reason = {400: "BadRequest", 404: "NotFound", 409: "Conflict"}.get(refused.status, "Invalid")
            return failure(refused.status, reason, str(refused), refused.findings)
        except Away as away:
            return failure(503, "ServiceUnavailable", f"{away}; it is written as soon as the store is back")

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _list(self, request: web.Request) -> web.StreamResponse:
        kind = _kind(request)
        namespace = request.match_info.get("namespace", "")
        if request.query.get("watch") == "true":
            return await self._watch(request, kind, namespace)
        found = list(self.desk.book.list(kind.kind, namespace))
        body = {
            "apiVersion": kind.version,
            "kind": f"{kind.kind}List",
            "metadata": {"resourceVersion": str(self.desk.book.version)},
            "items": found,
        }
        return web.json_response(body)

    async def _watch(self, request: web.Request, kind: KindOf, namespace: str) -> web.StreamResponse:
        """What there is as ADDED, then each change, one JSON object a line."""
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        watcher = self.desk.watch()
        try:
            await response.prepare(request)
            for document in list(self.desk.book.list(kind.kind, namespace)):
                await response.write(_event("ADDED", document))
            while True:
                event, document = await watcher.get()
                here = document["metadata"].get("namespace", "")
                if document["kind"] == kind.kind and (not namespace or here in ("", namespace)):
                    await response.write(_event(event, document))
        except ConnectionError:
            return response
        finally:
            self.desk.unwatch(watcher)

    async def _get(self, request: web.Request) -> web.Response:
        key = _key(request)
        document = self.desk.book.documents.get(key)
        return web.json_response(document) if document else _missing(key, self.desk)

    async def _create(self, request: web.Request) -> web.Response:
        document = await _body(request)
        metadata = document.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        key = _key(request, str(name))
        if key in self.desk.book.documents:
            return failure(409, "AlreadyExists", f"{key} exists; apply it instead (PATCH)")
        return await self._write(request, document)

    async def _apply(self, request: web.Request) -> web.Response:
        return await self._write(request, await _body(request))

    async def _write(self, request: web.Request, document: Document) -> web.Response:
        kind = _kind(request)
        if document.get("kind") not in (None, kind.kind):
            return failure(400, "BadRequest", f"kind is {document['kind']}, the path is of {kind.kind}")
        if self._look is not None:
            await self._look()
        applied = await self.desk.apply(document)
        response = web.json_response(applied.document, status=201 if applied.verb == "created" else 200)
        response.headers["X-Galaxy-Verb"] = applied.verb
        outcome = self.desk.reconciler.outcomes.get(applied.key)
        texts = [*applied.warnings, *(outcome.warnings if outcome else ())]
        if outcome is not None:
            texts.append(outcome.too_large)
        for text in dict.fromkeys(filter(None, texts)):
            response.headers.add("Warning", f'299 - "{_printable(text)}"')
        return response

    async def _delete(self, request: web.Request) -> web.Response:
        key = _key(request)
        document = await self.desk.delete(key)
        if document is None:
            return _missing(key, self.desk)
        return web.json_response({"kind": "Status", "apiVersion": "v1", "status": "Success"})


def _printable(text: str) -> str:
    """A name that a user gave may have a line break, which no header can."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _event(event: str, document: Document) -> bytes:
    return json.dumps({"type": event, "object": document}).encode() + b"\n"


def _kind(request: web.Request) -> KindOf:
    plural = request.match_info["plural"]
    kind = kind_of(plural)
    if kind is None:
        findings = Findings()
        findings.problem("kind", "unknown kind", kind_remedy(plural), plural)
        raise Refused(findings, 404)
    return kind


def _key(request: web.Request, name: str | None = None) -> ObjectKey:
    kind = _kind(request)
    namespace = request.match_info.get("namespace", "default") if kind.namespaced else ""
    return ObjectKey(kind.kind, namespace, name if name is not None else request.match_info["name"])


async def _body(request: web.Request) -> Document:
    findings = Findings()

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, times in Counter(key for key, _ in pairs).items():
            if times > 1:
                findings.problem(key, "is set twice in one object", "remove one of them")
        return dict(pairs)

    try:
        document: Any = json.loads(await request.read(), object_pairs_hook=once)
    except ValueError as error:
        findings.problem("(body)", f"is not JSON: {error}", "send one JSON object")
        raise Refused(findings, 400) from None
    if not isinstance(document, dict):
        findings.problem("(body)", "is not an object", "send one JSON object")
    if findings.problems:
        raise Refused(findings, 400)
    found: Document = document
    return found


def _missing(key: ObjectKey, desk: Desk) -> web.Response:
    where = f" in namespace {key.namespace}" if key.namespace else ""
    there = sorted(k.name for k in desk.book.documents if k.kind == key.kind and k.namespace == key.namespace)
    known = f"there are {', '.join(there)}" if there else "there is none of this kind"
    return failure(404, "NotFound", f"{key} not found{where}; {known}")
