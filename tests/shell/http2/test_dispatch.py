"""HTTP/2 at real Dispatch functions: a burst from zero is held, slots are obeyed, requests can be explained."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import h2.events
import pytest

from tests.shell.test_dispatch_function import HOST, records, revision, routed
from tests.support.dataplane import run
from tests.support.dispatch_cluster import Served, cluster, until
from tests.support.http2 import REQUEST, Peer, connect, instance2


def test_a_burst_at_zero_over_two_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        running = most = 0

        def serve(peer: Peer, event: Any) -> None:
            if isinstance(event, h2.events.StreamEnded):
                task = asyncio.ensure_future(answer(peer, event.stream_id))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        async def answer(peer: Peer, number: int) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await gate.wait()
            running -= 1
            peer.respond(number)
            await peer.send(number, bytes(peer.streams[number].body))
            peer.trailers(number, ("grpc-status", "0"))

        tasks: set[asyncio.Task[None]] = set()
        gate = asyncio.Event()
        async with instance2(serve) as made:

            async def start(served: Served) -> None:
                served.addr = made.addr
                served.state = "ready"

            monkeypatch.setattr(Served, "start", start)
            async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
                urls = await routed(up, revision(concurrency=8, most=2))
                clients = []
                for url in urls:
                    host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
                    clients.append(await connect(host, int(port)))
                pairs = [*REQUEST[:3], (":authority", HOST)]
                calls = [
                    asyncio.ensure_future(clients[i % 2].request(b"%d" % i, pairs=pairs)) for i in range(300)
                ]
                await until(lambda: running == 16, "every slot in use")
                gate.set()
                got = await asyncio.gather(*calls)
                assert [bytes(seen.body) for seen in got] == [b"%d" % i for i in range(300)]
                assert {(seen.status, str(seen.trailers)) for seen in got} == {(200, "{'grpc-status': '0'}")}
                assert most <= 16
                assert any(seen.heads[0]["x-cold-start"] == "true" for seen in got)
                await until(
                    lambda: [r["outcome"] for r in records(up)] == ["ok"] * 300,
                    "every request in the records",
                )
                unknown = await clients[0].request(pairs=[*REQUEST[:3], (":authority", "nobody")])
                assert unknown.status == 404

    run(test())
