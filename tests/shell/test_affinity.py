"""Affinity over real rpc and HTTP: shards agree without a word, a body that comes late is waited for, and what
can't be read prefers nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from activator_replacement.affinity import keys_of
from activator_replacement.seam import Exchange
from kserve_ext.core.dispatch.affinity import READ_BYTES, prefix_blocks
from kserve_ext.core.facts import Affinity, Command, Hold, Model, Resources, Revision, Scale
from kserve_ext.core.ids import RevisionKey
from tests.support.dataplane import Client, HoldingDispatch, dataplane, echo, instance, post, run
from tests.support.dispatch_cluster import Cluster, cluster, until
from tests.support.http2 import connect, echo2, instance2

KEY = RevisionKey("ns/echo-00001")
HOST = "echo.ns.galaxy.local"
TEXT = "The quick brown fox jumps over the lazy dog. " * 60


class ReadingDispatch(HoldingDispatch):
    """Wants the first bytes of each body before it decides."""

    def __init__(self, addr: str, wanted: int) -> None:
        super().__init__(addr)
        self.wanted = wanted
        self.read: list[bytes | None] = []

    def submit(self, exchange: Exchange) -> None:
        self.read.append(exchange.read(self.wanted))
        if self.read[-1] is not None:
            super().submit(exchange)
        self.changed.set()

    def cancelled(self, exchange: Exchange) -> None:
        self.outcomes.append(exchange.outcome)
        self.changed.set()


async def begun(up: Cluster, affinity: Affinity, concurrency: int) -> list[tuple[str, int]]:
    """Three instances, and the shards' addresses."""
    scale = Scale(min=3, max=3, initial=3)
    rev = Revision(
        KEY,
        "ns/echo",
        1,
        Command(("serve",)),
        Model(),
        Resources(),
        scale,
        Hold(),
        concurrency=concurrency,
        affinity=affinity,
    )
    up.apply(rev, HOST)
    await until(lambda: all(len(d.function.routes.revisions) == 1 for d in up.dispatch.values()), "known")
    await until(lambda: [s.state for s in up.instances.values()] == ["ready"] * 3, "three are ready")
    home = up.dispatch[up.home(KEY)].function.homes
    await until(
        lambda: all(h.revisions[KEY].fleet.ready == 3 for h in home.homes.values()), "home knows them"
    )
    pairs = [d.http.removeprefix("http://").rstrip("/").split(":") for d in up.dispatch.values()]
    return [(host, int(port)) for host, port in pairs]


async def asked(addr: tuple[str, int], body: bytes, *lines: str) -> int:
    """The serial number of the instance that answered; the body leaves after the head has been read."""
    client = await Client.connect(*addr)
    request = post(body, *lines, host=HOST)
    client.send(request.removesuffix(body))
    await asyncio.sleep(0)
    client.send(body)
    status, _, answer = await client.response()
    client.close()
    assert status == 200, answer
    return int(json.loads(answer)["pid"])


@pytest.mark.parametrize("concurrency", [0, 2])
def test_a_session_has_one_instance_whichever_shard_it_comes_to(tmp_path: Path, concurrency: int) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            shards = await begun(up, "session", concurrency)
            met: dict[str, set[int]] = {}
            for turn in range(3):
                for k in range(12):
                    addr = shards[(turn + k) % 2]
                    by_header = await asked(addr, b"{}", f"x-session-id: s-{k}")
                    by_user = await asked(addr, json.dumps({"user": f"u-{k}"}).encode())
                    met.setdefault(f"s-{k}", set()).add(by_header)
                    met.setdefault(f"u-{k}", set()).add(by_user)
            assert {name: len(pids) for name, pids in met.items()} == dict.fromkeys(met, 1)
            assert len({pid for pids in met.values() for pid in pids}) == 3, "all instances have sessions"
            records = [
                r.body()
                for d in up.dispatch.values()
                for r in d.function.dispatcher.requests._records.values()
            ]
            marks = [{name: detail for name, _, detail in record["marks"]} for record in records]
            assert all("(session: its first choice)" in mark["chosen"] for mark in marks)

    run(test())


@pytest.mark.parametrize("concurrency", [0, 2])
def test_a_prefix_goes_where_it_was_and_on_with_its_own(tmp_path: Path, concurrency: int) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            shards = await begun(up, "prefix", concurrency)
            met: dict[int, set[int]] = {}
            for turn in range(3):
                for k in range(9):
                    text = f"{k} {TEXT * (turn + 1)}"
                    body = json.dumps({"temperature": turn, "messages": [{"role": "user", "content": text}]})
                    met.setdefault(k, set()).add(await asked(shards[(turn + k) % 2], body.encode()))
            assert {k: len(pids) for k, pids in met.items()} == dict.fromkeys(met, 1)
            assert len({pid for pids in met.values() for pid in pids}) > 1

    run(test())


def test_a_body_is_waited_for_and_no_longer_than_it_has_to_be() -> None:
    async def test() -> None:
        async with instance(echo) as addr:
            dispatch = ReadingDispatch(addr, 10)
            async with dataplane(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(post(b"0123456789abcdef")[:-14])
                await dispatch.until(lambda: dispatch.read == [None])
                client.send(b"23456789")
                await dispatch.until(lambda: len(dispatch.read) == 2)
                assert dispatch.read[1] == b"0123456789"
                client.send(b"abcdef")
                assert (await client.response())[2].endswith(b"0123456789abcdef")
                client.send(post(b"short"))
                assert (await client.response())[2].endswith(b"short")
                assert dispatch.read[2:] == [b"short"], "the whole body came with its head"
                client.send(post(b"x" * 100_000)[:-95_000])
                await dispatch.until(lambda: len(dispatch.read) == 4)
                assert dispatch.read[3] == b"x" * 5_000
                client.send(b"x" * 95_000)
                assert (await client.response())[0] == 200
                client.send(post(b"never")[:-2])
                await dispatch.until(lambda: dispatch.read[-1] is None)
                client.close()
                await dispatch.until(lambda: len(dispatch.outcomes) == 4)

    run(test())


def test_what_can_not_be_read_while_it_is_held_is_not_waited_for() -> None:
    async def test() -> None:
        async with instance(echo) as addr:
            dispatch = ReadingDispatch(addr, 1 << 62)
            async with dataplane(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(post(b"x" * 100_000))
                assert (await client.response())[0] == 200
                client.send(b"POST /x HTTP/1.1\r\nHost: tiny\r\nTransfer-Encoding: chunked\r\n\r\n")
                await dispatch.until(lambda: len(dispatch.read) == 2)
                client.send(b"5\r\nhello\r\n0\r\n\r\n")
                assert (await client.response())[0] == 200
                assert None not in dispatch.read

    run(test())


def test_a_body_over_http2_is_waited_for() -> None:
    async def test() -> None:
        async with instance2(echo2) as made:
            dispatch = ReadingDispatch(made.addr, 10)
            async with dataplane(dispatch) as (_, host, port, _):
                client = await connect(host, port)
                number = client.begin(("content-length", "14"))
                await dispatch.until(lambda: dispatch.read == [None])
                client.h2.send_data(number, b"0123456789")
                client.flush()
                await dispatch.until(lambda: len(dispatch.read) == 2)
                client.h2.send_data(number, b"abcd", end_stream=True)
                client.flush()
                seen = await client.over(number)
                assert bytes(seen.body) == b"0123456789abcd"
                assert dispatch.read[1] == b"0123456789"
                number = client.begin(end=False)
                await dispatch.until(lambda: len(dispatch.read) == 3)
                assert dispatch.read[2] == b"", "of a stream of unknown length nobody knows when it goes on"
                client.h2.end_stream(number)
                client.flush()
                await client.over(number)

    run(test())


def exchange(body: bytes | None, **headers: str) -> Any:
    fields = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return SimpleNamespace(header=fields.get, read=lambda wanted: body)


def test_what_names_a_session() -> None:
    by_header = keys_of(exchange(None, x_session_id="s"), "session", "ns/a")
    by_user = keys_of(exchange(b'{"prompt": "x", "user": "s"}'), "session", "ns/a")
    assert by_header is not None
    assert by_header == by_user
    assert "s" not in by_header.session, "nothing of it is shown or kept"
    assert keys_of(exchange(None), "session", "ns/a") is None
    for body in (b"", b"{", b'{"user": 7}', b"[]", b'{"user": "\xff"}', b'{"user": ""}', b'{"prompt": "x"}'):
        keys = keys_of(exchange(body), "session", "ns/a")
        assert keys is not None
        assert not keys.session


def test_a_prefix_begins_with_the_prompt() -> None:
    one = keys_of(exchange(json.dumps({"temperature": 1, "prompt": TEXT}).encode()), "prefix", "ns/a")
    other = keys_of(
        exchange(json.dumps({"max_tokens": 9, "prompt": TEXT, "stream": True}).encode()), "prefix", "ns/a"
    )
    assert one is not None
    assert other is not None
    shared = min(len(one.blocks), len(other.blocks))
    assert shared == len(prefix_blocks(TEXT.encode()))
    assert one.blocks[:shared] == other.blocks[:shared]
    assert keys_of(exchange(b"\xff" * READ_BYTES), "prefix", "ns/a") is not None
