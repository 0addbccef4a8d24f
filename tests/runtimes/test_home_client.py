"""Leases of prefill slots from a home that answers over rpc, and moves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kserve_ext.core.ids import FunctionID, InstanceID
from kserve_ext.core.kv_links import Peer
from kserve_ext.rpc import Rpc
from kserve_ext.wire.messages import (
    Ack,
    LeasePrefill,
    Locate,
    Located,
    PrefillLease,
    PrefillPeer,
    PrefillPeers,
    ReturnPrefill,
    WatchPrefill,
)
from runtimes.vllm_pd.home_client import FixedLeases, HomeLeases, Lease, NoPrefill, make_leases

KEY = b"k" * 32


async def home(replies: list[PrefillLease], returned: list[ReturnPrefill]) -> tuple[Rpc, str]:
    rpc = Rpc("dispatch-0", KEY)
    rpc.handle(LeasePrefill, lambda message, caller: replies.pop(0))

    def back(message: ReturnPrefill, caller: object) -> Ack:
        returned.append(message)
        return Ack()

    rpc.handle(ReturnPrefill, back)
    return rpc, await rpc.listen("127.0.0.1")


def test_lease_and_return_also_after_the_home_has_moved(tmp_path: Path) -> None:
    async def run() -> None:
        returned: list[ReturnPrefill] = []
        first, addr = await home([PrefillLease("l1", InstanceID("p-1"), "127.0.0.1:9", 7)], returned)
        second, other = await home(
            [PrefillLease("", reason="no capacity"), PrefillLease("l2", InstanceID("p-2"), "a:1", 8)],
            returned,
        )
        current = [addr]
        agent = Rpc("node-0", KEY)
        agent.handle(Locate, lambda message, caller: Located(FunctionID("dispatch-0"), current[0], 1))
        socket = await agent.listen_unix(str(tmp_path / "agent.sock"))
        leases = HomeLeases("ns/group", "d-1", socket, KEY, 5.0)
        lease = await leases.lease("r", 300)
        assert lease == Lease("l1", "p-1", "127.0.0.1:9", 7)
        current[0] = other
        await first.close()
        await leases.release(lease, "channel-closed")
        assert returned == [ReturnPrefill("ns/group", "l1", "channel-closed")]
        with pytest.raises(NoPrefill, match="no capacity"):
            await leases.lease("r", 300)
        assert (await leases.lease("r", 300)).id == "l2"
        await second.close()
        with pytest.raises(NoPrefill, match="home"):
            await leases.lease("r", 300)
        await leases.release(lease)
        await leases.close()
        await agent.close()

    asyncio.run(run())


def test_the_home_tells_of_prefill_instances_and_a_fixed_list_never_changes(tmp_path: Path) -> None:
    async def run() -> None:
        rpc, addr = await home([], [])
        asked: list[WatchPrefill] = []

        def watch(message: WatchPrefill, caller: object) -> PrefillPeers:
            asked.append(message)
            return PrefillPeers("t1", (PrefillPeer(InstanceID("p-1"), "127.0.0.1:9", 7),))

        rpc.handle(WatchPrefill, watch)
        agent = Rpc("node-0", KEY)
        agent.handle(Locate, lambda message, caller: Located(FunctionID("dispatch-0"), addr, 1))
        leases = HomeLeases("ns/group", "d-1", await agent.listen_unix(str(tmp_path / "s")), KEY, 5.0)
        assert await leases.peers("t0") == ("t1", (Peer("p-1", "127.0.0.1:9", 7),))
        assert asked == [WatchPrefill("ns/group", "t0")]
        await leases.close()
        await rpc.close()
        await agent.close()
        fixed = FixedLeases(["a:1", "b:2"])
        tag, peers = await fixed.peers("")
        assert peers == (Peer("a:1", "a:1"), Peer("b:2", "b:2"))
        later = asyncio.ensure_future(fixed.peers(tag))
        assert not (await asyncio.wait([later], timeout=0))[0]
        later.cancel()

    asyncio.run(run())


def test_a_fixed_list_takes_turns() -> None:
    async def run() -> None:
        leases = FixedLeases(["a:1", "b:2"])
        assert [(await leases.lease("r", 1)).addr for _ in range(3)] == ["a:1", "b:2", "a:1"]
        with pytest.raises(NoPrefill):
            await FixedLeases([]).lease("r", 1)

    asyncio.run(run())


def test_the_environment_chooses(tmp_path: Path) -> None:
    assert isinstance(make_leases({}), FixedLeases)
    fixed = make_leases({"GALAXY_PREFILL_PEERS": "a:1, b:2"})
    assert isinstance(fixed, FixedLeases)
    assert fixed.addrs == ("a:1", "b:2")
    (tmp_path / "key").write_bytes(KEY)
    environ = {
        "GALAXY_GROUP": "ns/g",
        "GALAXY_NODE_SOCKET": "/run/agent.sock",
        "GALAXY_CLUSTER_KEY_FILE": str(tmp_path / "key"),
    }
    assert isinstance(make_leases(environ), HomeLeases)
