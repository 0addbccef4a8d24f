"""Requests through the ingress: single ones that block, and a load in a thread of its own that keeps count."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, NamedTuple

import aiohttp

from e2e.behaviours.ingress import Backend, Ingress, NoEndpoint
from e2e.behaviours.services import NAMESPACE, Service
from e2e.stack.api import wait_until

REQUEST_S = 60
#: Where an activator listens if system-internal-tls is enabled, and what its certificate says.
TLS_PORT = 8112
INTERNAL_NAME = "kn-routing"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    revision: str

    @property
    def report(self) -> Any:
        """What the user server says of the request."""
        return json.loads(self.body)


class Client:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def backend(self, service: Service) -> Backend:
        """One of its endpoints, once there are any."""
        found = wait_until(
            "an endpoint", lambda: _pick_or_none(self.ingress, service), 30, detail=service.story
        )
        assert found is not None
        return found

    def send(
        self,
        service: Service,
        path: str = "/",
        method: str = "GET",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """On a connection of its own."""
        backend = self.backend(service)
        connection = http.client.HTTPConnection(backend.address, timeout=REQUEST_S)
        try:
            connection.request(method, path, body, {**backend.headers, **(headers or {})})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read(), backend.revision)
        finally:
            connection.close()

    def send_many(self, service: Service, count: int, path: str = "/") -> list[Answer]:
        """All at once."""
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda _: self.send(service, path), range(count)))

    @contextmanager
    def load(
        self,
        service: Service,
        clients: int,
        path: str = "/",
        pause_s: float = 0.0,
        *,
        body: bytes = b"",
        tls: ssl.SSLContext | None = None,
    ) -> Iterator[Load]:
        """Runs during the block; everything sent has been answered or has failed when the block is left."""
        running = Load(self.ingress, service.name, clients, path, pause_s, body, tls)
        thread = threading.Thread(target=lambda: asyncio.run(running.run()), name="load")
        thread.start()
        try:
            yield running
        finally:
            running.stopping = True
            thread.join()


def _pick_or_none(ingress: Ingress, service: Service) -> Backend | None:
    try:
        return ingress.pick(NAMESPACE, service.name)
    except NoEndpoint:
        return None


class Load:
    """Each client sends its next request when it has the answer to the last, `pause_s` later.

    POST, which a client sends once: aiohttp repeats a GET whose kept connection broke, and says nothing. Usually
    without a body: Go's proxies may cut a response that begins before the body was read (Knative: http-full-duplex).
    """

    def __init__(
        self,
        ingress: Ingress,
        route: str,
        clients: int,
        path: str,
        pause_s: float,
        body: bytes,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._ingress = ingress
        self._route = route
        self._clients = clients
        self._path = path
        self._pause_s = pause_s
        self._body = body
        self._tls = tls
        self.stopping = False
        self.outcomes: Counter[str] = Counter()
        self.revisions: Counter[str] = Counter()
        self.pods: Counter[str] = Counter()
        self.failures: list[str] = []

    @property
    def good(self) -> int:
        return self.outcomes["200"]

    def wait_good(self, more: int, seconds: float = 60) -> None:
        """Until so many more requests have been answered with 200."""
        goal = self.good + more
        wait_until(
            f"{more} good answers", lambda: self.good >= goal, seconds, detail=lambda: str(self.outcomes)
        )

    async def run(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=REQUEST_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.gather(*(self._client(session) for _ in range(self._clients)))

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self.stopping:
            started = time.time()
            try:
                backend = self._ingress.pick(NAMESPACE, self._route)
                self.revisions[backend.revision] += 1
                async with self._post(session, backend) as response:
                    body = await response.read()
                    outcome = str(response.status)
                    self.pods[response.headers.get("Pod", "")] += 1
                    note = body[:200].decode(errors="replace")
            except (NoEndpoint, aiohttp.ClientError, OSError, TimeoutError) as error:
                outcome, note = type(error).__name__, str(error)
            self.outcomes[outcome] += 1
            if outcome != "200":
                at = time.strftime("%H:%M:%S", time.localtime(started))
                self.failures.append(f"{at} +{time.time() - started:.2f} s: {outcome} {note}")
                await asyncio.sleep(0.05)
            await asyncio.sleep(self._pause_s)

    def _post(
        self, session: aiohttp.ClientSession, backend: Backend
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._tls is None:
            return session.post(
                f"http://{backend.address}{self._path}", headers=backend.headers, data=self._body
            )
        host = backend.address.rpartition(":")[0]
        return session.post(
            f"https://{host}:{TLS_PORT}{self._path}",
            headers=backend.headers,
            data=self._body,
            ssl=self._tls,
            server_hostname=INTERNAL_NAME,
        )
