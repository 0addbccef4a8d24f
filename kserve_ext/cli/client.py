"""The command's side of the admin server: plain HTTP with the cluster's token, and errors a person can act on."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from kserve_ext.api.access import token
from kserve_ext.api.kserve.resources import KindOf
from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.failure import Failure

Document = dict[str, Any]
_WARNING = re.compile(r'299 - "(.*)"')


class Answer(NamedTuple):
    """`body` is the decoded JSON."""

    body: Document
    verb: str = ""  # created | configured | unchanged
    warnings: tuple[str, ...] = ()


class Client:
    """Of one cluster; a connection a call."""

    def __init__(self, folder: Folder, timeout_s: float = 15.0) -> None:
        self.folder = folder
        self.timeout_s = timeout_s
        self._address = str(folder.required()["objects"])
        self._token = token(folder.key.read_bytes())

    def call(self, method: str, path: str, body: Document | None = None) -> Answer:
        """The answer; Failure for everything else than success."""
        connection, response = self._send(method, path, body, self.timeout_s)
        try:
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()
        try:
            document = json.loads(data)
        except ValueError:
            raise Failure(
                f"{method} {path}: status {response.status}", data[:300].decode(errors="replace")
            ) from None
        if response.status >= 400:
            raise refusal(document)
        warnings = tuple(
            found[1]
            for text in response.headers.get_all("Warning", [])
            if (found := _WARNING.fullmatch(text))
        )
        return Answer(document, response.headers.get("X-Galaxy-Verb", ""), warnings)

    def events(self, path: str) -> Iterator[Document]:
        """Lines of JSON until the server ends them."""
        connection, response = self._send("GET", path, None, None)
        try:
            if response.status >= 400:
                raise refusal(json.loads(response.read()))
            for line in response:
                yield json.loads(line)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: Document | None, timeout_s: float | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self._address, timeout=timeout_s)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> Failure:
        log = self.folder.log / "objects-0.log"
        return Failure(
            f"the objects process ({self._address}) does not answer",
            f"{type(error).__name__}: {error}",
            f"try again in a second: the supervisor restarts it; else see {log}",
        )


def path_of(kind: KindOf, namespace: str = "", name: str = "") -> str:
    """Kubernetes' path; namespace "" = all of them, or a cluster-wide kind."""
    place = f"/namespaces/{namespace}" if namespace and kind.namespaced else ""
    return f"/apis/{kind.version}{place}/{kind.plural}" + (f"/{name}" if name else "")


def refusal(status: Document) -> Failure:
    """A Kubernetes Status object as what, why, do."""
    causes = (status.get("details") or {}).get("causes") or []
    if not causes:
        return Failure(str(status.get("message") or "failed"))
    why, do = [], []
    for cause in causes:
        value = f" (is {cause['value']})" if cause.get("value") else ""
        why.append(f"{cause['field']}: {cause['reason']}{value}")
        do.append(f"{cause['field']}: {cause['remedy']}")
    count = "a problem" if len(causes) == 1 else f"{len(causes)} problems"
    return Failure(f"refused because of {count}", "\n".join(why), "\n".join(do))
