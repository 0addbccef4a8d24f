"""Membership and store over messages that are lost, doubled, late and overtaken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from autoscaler_shim.controller import Controller
from autoscaler_shim.elastic import Launch
from autoscaler_shim.keeping import in_journal
from kserve_ext.core.control.facts import SCALED, ScaledKind
from kserve_ext.core.control.machine import ElasticMachine
from kserve_ext.core.facts import Member, View
from kserve_ext.core.ids import FunctionID
from kserve_ext.rpc import Rpc
from kserve_ext.rpc import membership as module
from kserve_ext.rpc.membership import Membership
from kserve_ext.store import Unavailable, remote
from kserve_ext.store.journal import Journal
from kserve_ext.store.remote import RemoteStore
from kserve_ext.store.server import StoreServer
from tests.support.faulty_rpc import faulty

KEY = b"k" * 32


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(100):
        while not holds():  # noqa: ASYNC110  of several processes' parts, without an event
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("seed", range(3))
def test_views_only_grow_and_all_members_come_to_the_same(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CALL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(module, "JOIN_TIMEOUT_S", 0.3)

    async def story() -> None:
        host = Rpc("controller-0", KEY)
        addr = await host.listen("127.0.0.1")
        keeper = in_journal(StoreServer(host, Journal(tmp_path)))
        thresholds: dict[ScaledKind, float] = dict.fromkeys(SCALED, 1e9)
        launch = Launch("", addr, "127.0.0.1")
        controller = Controller(
            host,
            addr,
            keeper,
            {},
            lambda kept, now: ElasticMachine({}, kept, now, thresholds),
            launch,
        )
        ticks = asyncio.create_task(controller.run())
        members: list[Membership] = []
        seen: dict[str, list[View]] = {}
        with faulty(seed) as faults:
            for k in range(4):
                name = FunctionID(f"node-{k}")
                rpc = Rpc(name, KEY)
                member = Member(name, "node", await rpc.listen("127.0.0.1"), 1)
                members.append(Membership(rpc, member, addr))
                members[-1].on_view(seen.setdefault(name, []).append)
            await asyncio.gather(*(m.start() for m in members))
            await until(lambda: all(len(m.view.members) == 4 for m in members))
            controller._push(
                controller.machine.leave(FunctionID("node-3"), 1, "gone", asyncio.get_running_loop().time())
            )
            await until(lambda: faults.dropped > 3 and faults.doubled > 3 and faults.delayed > 3)
            faults.calm = True
            await until(lambda: len({m.view for m in members}) == 1 and len(members[0].view.members) == 4)
        for views in seen.values():  # node-3 has joined again: it was told that it is no member
            epochs = [view.epoch for view in views]
            assert epochs == sorted(set(epochs))
        for m in members:
            await m.leave()
            await m.rpc.close()
        ticks.cancel()
        await host.close()

    asyncio.run(story())


@pytest.mark.parametrize("seed", range(4))
def test_a_late_write_never_takes_the_place_of_a_later_one(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "CALL_TIMEOUT_S", 0.15)

    async def story() -> None:
        host, client = Rpc("controller-0", KEY), Rpc("client", KEY)
        addr = await host.listen("127.0.0.1")
        journal = Journal(tmp_path)
        StoreServer(host, journal)
        store = RemoteStore(client, addr)
        rng, latest = Random(seed), dict[str, bytes]()
        with faulty(seed, delay_s=0.4) as faults:
            for k in range(40):
                key, value = f"a/{rng.randrange(4)}", str(k).encode()
                latest[key] = value
                if rng.random() < 0.7:
                    store.put([(key, value)])
                    await asyncio.sleep(rng.choice([0, 0.01, 0.05]))
                else:
                    while True:
                        try:
                            await store.put_now([(key, value)])
                            break
                        except Unavailable:
                            continue
            assert await store.flush(60)
            assert faults.delayed > 3
            await asyncio.sleep(faults.delay_s)  # whatever is still under way has arrived
        assert {k: v for k, v, _ in journal.memory.scan("a/")} == latest
        await store.close()
        await client.close()
        await host.close()
        journal.close()

    asyncio.run(story())
