"""An activator's Dispatch under clients, pods and Endpoints that do anything at any time: nothing is left behind.

Seeded, so a failure repeats; `run` fails on any exception in a callback.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from activator_replacement.knative.client import KnativeClient
from activator_replacement.knative.dispatcher import Dispatcher
from activator_replacement.knative.reports.reporter import Reporter
from kserve_ext.api.knative.revision import Activated
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.knative.activation import Room
from kserve_ext.core.knative.assignment import Share
from kserve_ext.core.knative.timeouts import Timeouts
from kserve_ext.wire.stats import StatMessage, decode
from tests.shell.test_dataplane_chaos import fickle, unsteady
from tests.support.dataplane import dataplane, instance, run
from tests.support.dispatch_cluster import until

KEY = RevisionKey("default/tiny")
#: What fickle clients ask for, as the host of a revision.
HOSTS = {b"tiny": (b"default", b"tiny"), b"a": (b"default", b"tiny")}


class HostDispatcher(Dispatcher):
    """Finds the revision by the short hosts that these clients use."""

    def _of_host(self, host: bytes) -> tuple[bytes, bytes] | None:
        return HOSTS.get(host)


@pytest.mark.parametrize("concurrency", [0, 1, 5])
@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_left_behind(concurrency: int, seed: int) -> None:
    async def test() -> None:
        rng = random.Random(seed)
        told: list[StatMessage] = []

        def send(data: bytes) -> bool:
            told.extend(decode(data))
            return True

        reporter = Reporter("act-0", send)
        loop = asyncio.get_running_loop()
        room = Room(1 << 20)
        dispatch = HostDispatcher(loop, reporter, "cluster.local", 40, room, rng.random)
        facts = Activated(KEY, "default", "tiny", "u", concurrency, Timeouts(5.0, 3.0, 2.0), False, True)
        dispatch.revision(facts)
        part = dispatch.parts[KEY]
        failed: list[str] = []
        dispatch.unreachable = lambda key, addr: failed.append(addr)

        def pod(reader: asyncio.StreamReader, writer: asyncio.StreamWriter):  # type: ignore[no-untyped-def]
            return unsteady(reader, writer, random.Random(rng.random()))

        async with instance(pod) as one, instance(pod) as two, instance(pod) as three:
            addrs = [one, two, three, "127.0.0.1:1"]

            async def flap() -> None:
                while True:
                    dispatch.use(KEY, set(rng.sample(addrs, rng.randrange(len(addrs) + 1))), "", 0, b"")
                    part.activation.check()
                    dispatch.share(KEY, Share(rng.randrange(2), 2), ())
                    part.activation.check()
                    assert all(t.in_flight <= max(t.limit, concurrency) for t in part.activation.assigned)
                    reporter.report(loop.time())
                    await asyncio.sleep(0.004)

            async with dataplane(dispatch, client_type=KnativeClient, stall_timeout_s=1.0) as (
                server,
                host,
                port,
                _,
            ):
                flapping = asyncio.ensure_future(flap())
                await asyncio.gather(*(fickle(host, port, random.Random(rng.random())) for _ in range(120)))
                flapping.cancel()
                dispatch.use(KEY, {one}, "", 0, b"")
                activation = part.activation
                await until(lambda: not activation.held and not activation.in_flight, "every request ended")
                await until(lambda: not any(c.active for c in server.plane.clients), "no exchange is left")
                assert room.held_bytes == 0
                assert part.stats is None or part.stats.under_way == 0
                assert failed, "the address that nobody listens on was tried"
                assert sum(sum(found[:-1]) for found in part.durations.by.values()) > 50
                assert all(m.stat.request_count >= 0 for m in told)

    run(test())
