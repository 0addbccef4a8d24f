"""Requests to one API server: who we are, how fast, what is tried again, and whether anybody is there.

It knows nothing of objects. It takes care of credentials that change, of 429 and Retry-After, and of connections that
died in silence. Like client-go's rest client, except that a refused request is repeated only a few times: work queues
do the rest.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from kserve_ext.core.token_bucket import TokenBucket
from kserve_ext.kube.access import Access, AccessError
from kserve_ext.kube.errors import KubeError, Unavailable, error_of
from kserve_ext.kube.traffic import NO_ANSWER, Traffic

REQUEST_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
TRIES = 4
MOST_RETRY_AFTER_S = 10.0
#: Seconds of silence, between probes, and number of probes before the kernel gives a peer up.
KEEP_ALIVE = (15, 5, 3)
BROKEN = (aiohttp.ClientError, TimeoutError, OSError)


class Session:
    """Connections are opened at the first request, on the loop that it runs on."""

    def __init__(self, access: Access, qps: float = 0.0, burst: int = 0, user_agent: str = "") -> None:
        """qps 0: as fast as the server likes; burst 0: twice qps."""
        self.access = access
        self.requests = 0
        self.traffic = Traffic()
        #: Of time.monotonic: the last time that the server said anything.
        self.last_contact = time.monotonic()
        self._failing_since: float | None = None
        self._headers = {"User-Agent": user_agent or "kserve-galaxy", "Accept": "application/json"}
        self._bucket = TokenBucket(qps, burst or max(1, int(qps * 2))) if qps else None
        self._http: aiohttp.ClientSession | None = None

    def away_s(self) -> float:
        """Since when nothing but failures has come from the server, in seconds; 0 while it answers."""
        return 0.0 if self._failing_since is None else time.monotonic() - self._failing_since

    async def close(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def ask(
        self, method: str, path: str, params: Mapping[str, str], content: bytes | None, content_type: str
    ) -> bytes:
        """The body of the answer; what the server refuses for now, with Retry-After, is asked again a little."""
        begun = time.monotonic()
        try:
            return await self._ask(method, path, params, content, content_type)
        finally:
            self.traffic.took(method, path, time.monotonic() - begun)

    async def follow(
        self, path: str, params: Mapping[str, str], idle_s: float, on_open: Callable[[], None]
    ) -> AsyncGenerator[bytes, None]:
        """The lines of an answer without end, until the server ends it or says nothing for `idle_s`.

        on_open: the server has taken the request; what it has to tell may come much later.
        """
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=idle_s)
        try:
            # The head comes at once, however quiet it is after that.
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                response = await self._send("GET", path, params, None, "", limits)
        except TimeoutError as error:
            raise self._failed(error) from error
        try:
            if response.status != 200:
                raise self._refusal(response, await self._body(response))
            on_open()
            rest = b""  # one line may be far longer than a read buffer
            chunks = response.content.iter_any()
            while True:
                try:
                    chunk = await anext(chunks)
                except (StopAsyncIteration, aiohttp.SocketTimeoutError):
                    return
                except BROKEN as error:
                    raise self._failed(error) from error
                self._contact()
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line:
                        yield line
        finally:
            response.close()

    # --- inside

    async def _ask(
        self, method: str, path: str, params: Mapping[str, str], content: bytes | None, content_type: str
    ) -> bytes:
        limits = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        for tries_left in reversed(range(TRIES)):
            response = await self._send(method, path, params, content, content_type, limits)
            body = await self._body(response)
            if response.status < 300:
                return body
            refusal = self._refusal(response, body)
            if not 0 < refusal.retry_after_s <= MOST_RETRY_AFTER_S or tries_left == 0:
                raise refusal
            await asyncio.sleep(refusal.retry_after_s * random.uniform(1.0, 1.2))
        raise AssertionError("the last try returns or raises")

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
        headers = {"Content-Type": content_type} if content is not None else {}
        refused: str | None = None
        while True:
            try:
                header = await self.access.header(refused)
                if header:
                    headers["Authorization"] = header
                self.requests += 1
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
            except (*BROKEN, AccessError) as error:
                self.traffic.answers[method, NO_ANSWER] += 1
                raise self._failed(error) from error
            if response.status >= 500:  # it may be a balancer that speaks for a dead server
                self._fails()
            else:
                self._contact()
            self.traffic.answers[method, response.status] += 1
            if response.status != 401 or refused is not None:
                return response
            refused = header
            response.release()

    def _open(self) -> aiohttp.ClientSession:
        if self._http is None:
            # No limit on connections: each watch holds one, and workers and the rate bound the rest.
            connector = aiohttp.TCPConnector(
                limit=0, ssl=self.access.endpoint.tls or True, keepalive_timeout=60, socket_factory=_socket
            )
            self._http = aiohttp.ClientSession(
                connector=connector, headers=self._headers, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._http

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        try:
            return await response.read()
        except BROKEN as error:
            raise self._failed(error) from error

    def _refusal(self, response: aiohttp.ClientResponse, body: bytes) -> KubeError:
        """From the Status object, or from whatever a proxy or an unknown path answers."""
        after = response.headers.get("Retry-After", "")
        try:
            answer = msgspec.json.decode(body)
        except msgspec.DecodeError:
            answer = None
        if not isinstance(answer, dict):
            said = body[:200].decode(errors="replace").strip()
            answer = {"message": f"{response.method} {response.url.path}: {said or response.reason}"}
        return error_of(response.status, answer, float(after) if after.isdecimal() else 0.0)

    def _failed(self, error: Exception) -> Unavailable:
        self._fails()
        what = str(error) or type(error).__name__
        if isinstance(error, TimeoutError):
            what = "no answer in time"
        elif isinstance(error, aiohttp.ClientPayloadError):
            what = "the connection broke in mid-answer"
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
