"""Clients that ask services by turns, and rest in between so that these go to zero; who answered what is kept."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import aiohttp

from e2e.behaviours.ingress import Ingress, NoEndpoint
from e2e.behaviours.services import NAMESPACE, Service

#: Longer than anything here may take. A request without an answer until then is lost.
REQUEST_S = 120.0
BUSY_S = (0.5, 6.0)
#: Longer than the window of a service, often.
REST_S = (4.0, 20.0)
PAUSE_S = 0.2
#: What a refusal may be. It has to say why.
REFUSALS = (502, 503, 504)


class Broken(NamedTuple):
    """No answer, or half of one."""

    address: str
    since: float
    until: float
    why: str


class Crowd:
    """A context: every client has its last answer when it is left."""

    def __init__(self, ingress: Ingress, services: Sequence[Service], seed: int, clients: int = 2) -> None:
        self._ingress = ingress
        self._services = [(service.name, service.revision) for service in services]
        self._seed = seed
        self._clients = clients
        self._stopping = False
        #: Nobody rests any more.
        self.steady = False
        self.good: Counter[str] = Counter()  # by service
        self.refusals: Counter[str] = Counter()
        #: What must not be.
        self.wrong: list[str] = []
        self.broken: list[Broken] = []
        self.waits_s: list[float] = []
        #: A server's process -> the revisions for which it answered.
        self.servers: defaultdict[int, set[str]] = defaultdict(set)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="crowd")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join()

    def lost(self, may_break: Callable[[str, float, float], bool]) -> list[Broken]:
        """Those that nothing explains."""
        return [one for one in self.broken if not may_break(one.address, one.since, one.until)]

    async def _run(self) -> None:
        # A connection for each request: it breaks with the part that it was sent to, and with no other.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=REQUEST_S)
        ) as session:
            await asyncio.gather(
                *(
                    self._turns(session, name, revision, random.Random(f"{self._seed} {number}"))
                    for number, (name, revision) in enumerate(self._services)
                )
            )

    async def _turns(
        self, session: aiohttp.ClientSession, name: str, revision: str, chance: random.Random
    ) -> None:
        """The clients of a service come and go together."""
        while not self._stopping:
            until = time.monotonic() + chance.uniform(*BUSY_S)
            await asyncio.gather(
                *(self._client(session, name, revision, chance, until) for _ in range(self._clients))
            )
            for _ in range(int(chance.uniform(*REST_S) / PAUSE_S)):
                if self._stopping or self.steady:
                    break
                await asyncio.sleep(PAUSE_S)

    async def _client(
        self,
        session: aiohttp.ClientSession,
        name: str,
        revision: str,
        chance: random.Random,
        until: float,
    ) -> None:
        while not self._stopping and time.monotonic() < until:
            await self._ask(session, name, revision, chance.choice(("/", "/sleep?s=0.3")))
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, session: aiohttp.ClientSession, name: str, revision: str, path: str) -> None:
        since = time.monotonic()
        try:
            backend = self._ingress.pick(NAMESPACE, name)
        except NoEndpoint as error:
            self.refusals[f"ingress: {str(error).replace(revision, 'REVISION')}"] += 1
            return
        try:
            async with session.get(f"http://{backend.address}{path}", headers=backend.headers) as response:
                body = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.broken.append(Broken(backend.address, since, time.monotonic(), repr(error)))
            return
        took_s = time.monotonic() - since
        text = body.decode(errors="replace").strip()
        if response.status == 200:
            said = json.loads(body)
            if said["model"] != f"model of {name.partition('-')[0]}" or said["revision"] not in (
                "",
                f"{NAMESPACE}/{revision}",
            ):
                self.wrong.append(f"{revision} was answered by {text}")
            self.servers[said["pid"]].add(revision)
            self.good[name] += 1
            self.waits_s.append(took_s)
        elif response.status in REFUSALS and text:
            self.refusals[f"{response.status} {text.replace(revision, 'REVISION')[:160]}"] += 1
        else:
            self.wrong.append(f"{revision} after {took_s:.1f} s: {response.status} {text!r}")
