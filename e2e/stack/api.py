"""A small Kubernetes client on the standard library, for starting a stack and for the tests.

Blocking, as the administrator, from a process that has entered the node's namespace.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from e2e.stack.place import ADMIN_TOKEN, NODE_IP, Place

Object = dict[str, Any]
T = TypeVar("T")


class ApiError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    def __init__(self, place: Place) -> None:
        self._tls = ssl.create_default_context(cafile=str(place.certificates / "ca.crt"))
        self._connection: http.client.HTTPSConnection | None = None
        self._kinds: dict[tuple[str, str], tuple[str, bool]] = {}

    def close(self) -> None:
        """The kept connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        status, text = self.raw(method, path, body, content_type)
        try:
            answer = json.loads(text) if text else {}
        except ValueError:
            answer = {"message": text.decode(errors="replace")}
        if status >= 300:
            raise ApiError(status, f"{method} {path}: {status} {answer.get('message', '')}")
        return answer

    def raw(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Accept": "application/json"}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = content_type
        for last in (False, True):  # a kept connection may have been closed meanwhile
            if self._connection is None:
                self._connection = http.client.HTTPSConnection(NODE_IP, 6443, context=self._tls, timeout=60)
            try:
                self._connection.request(method, path, data, headers)
                response = self._connection.getresponse()
                return response.status, response.read()
            except (OSError, http.client.HTTPException):
                self.close()
                if last:
                    raise
        raise AssertionError("unreachable")

    def path(self, api_version: str, kind: str, namespace: str = "", name: str = "") -> str:
        key = api_version, kind
        if key not in self._kinds:
            base = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
            for resource in self.call("GET", base)["resources"]:
                if "/" not in resource["name"]:
                    place = f"{base}|{resource['name']}"
                    self._kinds[api_version, resource["kind"]] = place, resource["namespaced"]
        where, namespaced = self._kinds[key]
        base, plural = where.split("|")
        inner = f"/namespaces/{namespace or 'default'}" if namespaced else ""
        return f"{base}{inner}/{plural}" + (f"/{name}" if name else "")

    def _path_of(self, obj: Object) -> str:
        metadata = obj["metadata"]
        return self.path(obj["apiVersion"], obj["kind"], metadata.get("namespace", ""), metadata["name"])

    def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object:
        answer: Object = self.call("GET", self.path(api_version, kind, namespace, name))
        return answer

    def list(self, api_version: str, kind: str, namespace: str, labels: str = "") -> list[Object]:
        query = f"?labelSelector={labels}" if labels else ""
        items: list[Object] = self.call("GET", self.path(api_version, kind, namespace) + query)["items"]
        return items

    def apply(self, obj: Object) -> Object:
        """Server-side apply."""
        answer: Object = self.call(
            "PATCH", f"{self._path_of(obj)}?fieldManager=e2e&force=true", obj, "application/apply-patch+yaml"
        )
        return answer

    def create(self, obj: Object) -> Object:
        answer: Object = self.call("POST", self._path_of(obj).rpartition("/")[0], obj)
        return answer

    def patch(
        self, api_version: str, kind: str, namespace: str, name: str, patch: Any, strategic: bool = False
    ) -> Object:
        content_type = f"application/{'strategic-' if strategic else ''}merge-patch+json"
        answer: Object = self.call(
            "PATCH", self.path(api_version, kind, namespace, name), patch, content_type
        )
        return answer

    def delete(
        self, api_version: str, kind: str, namespace: str, name: str, grace_s: int | None = None
    ) -> None:
        """Deleting what is gone is no error."""
        body = None if grace_s is None else {"gracePeriodSeconds": grace_s}
        try:
            self.call("DELETE", self.path(api_version, kind, namespace, name), body)
        except ApiError as error:
            if error.status != 404:
                raise

    def apply_all(self, objects: Iterable[Object]) -> None:
        """Definitions and namespaces first, the definitions established before their objects are sent."""
        first = {"CustomResourceDefinition": 0, "Namespace": 1}
        ordered = sorted(objects, key=lambda obj: first.get(obj["kind"], 2))
        for obj in ordered:
            if obj["kind"] != "CustomResourceDefinition":
                break
            self.apply(obj)
        for obj in ordered:
            if obj["kind"] == "CustomResourceDefinition":
                self._established(obj["metadata"]["name"])
            else:
                self.apply(obj)

    def _established(self, name: str) -> None:
        kind = ("apiextensions.k8s.io/v1", "CustomResourceDefinition")

        def check() -> bool:
            return condition(self.get(*kind, "", name), "Established") == "True"

        wait_until(f"definition {name} established", check, 30)


def condition(obj: Object, name: str) -> str:
    """`True`, `False`, `Unknown`, or "" where the object has no such condition."""
    conditions = obj.get("status", {}).get("conditions") or []
    return next((entry["status"] for entry in conditions if entry["type"] == name), "")


def wait_until(
    what: str, check: Callable[[], T], seconds: float, every_s: float = 0.1, detail: Callable[[], str] = str
) -> T:
    """The first true answer of `check`. Failures to connect and of the API count as not yet."""
    end = time.monotonic() + seconds
    last: Any = None
    while time.monotonic() < end:
        try:
            last = check()
            if last:
                return last  # type: ignore[no-any-return]
        except (ApiError, OSError, http.client.HTTPException) as error:
            last = error
        time.sleep(every_s)
    raise TimeoutError(f"{what}: not within {seconds:.0f} s; last: {last!r} {detail()}".rstrip())


def documents(*paths: Path) -> Iterable[Object]:
    """Every object of YAML files; of a folder, of all the files below it."""
    for path in paths:
        for file in sorted(path.rglob("*.yaml")) if path.is_dir() else [path]:
            with file.open(encoding="utf-8") as text:
                loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
                for document in yaml.load_all(text, loader):
                    if document:
                        yield document
