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
    Decoded,
    LeasePrefill,
    Locate,
    Located,
    PrefillLease,
    PrefillPeer,
    PrefillPeers,
    ReturnPrefill,
    WatchPrefill,
)
from runtimes.vllm_pd.home_client import (
    Computed,
    FixedLeases,
    HomeLeases,
    Lease,
    NoPrefill,
    Wanted,
    make_leases,
)
from runtimes.vllm_pd.load import Load

KEY = b"k" * 32


async def home(
    replies: list[PrefillLease], returned: list[ReturnPrefill], asked: list[LeasePrefill] | None = None
) -> tuple[Rpc, str]:
    rpc = Rpc("dispatch-0", KEY)

    def lease(message: LeasePrefill, caller: object) -> PrefillLease:
        if asked is not None:
            asked.append(message)
        return replies.pop(0)

    rpc.handle(LeasePrefill, lease)

    def back(message: ReturnPrefill, caller: object) -> Ack:
        returned.append(message)
        return Ack()

    rpc.handle(ReturnPrefill, back)
    return rpc, await rpc.listen("127.0.0.1")


def test_lease_and_return_also_after_the_home_has_moved(tmp_path: Path) -> None:
    async def run() -> None:
        returned: list[ReturnPrefill] = []
        asked: list[LeasePrefill] = []
        first, addr = await home([PrefillLease("l1", InstanceID("p-1"), "127.0.0.1:9", 7)], returned, asked)
        second, other = await home(
            [PrefillLease("", reason="no capacity"), PrefillLease("l2", InstanceID("p-2"), "a:1", 8)],
            returned,
        )
        current = [addr]
        agent = Rpc("node-0", KEY)
        agent.handle(Locate, lambda message, caller: Located(FunctionID("dispatch-0"), current[0], 1))
        socket = await agent.listen_unix(str(tmp_path / "agent.sock"))
        leases = HomeLeases("ns/group", "d-1", socket, KEY, 5.0)
        wanted = Wanted(200, (1 << 63, 5), ("p-1",), ("p-3",))
        lease = await leases.lease("r", 300, wanted=wanted)
        assert lease == Lease("l1", "p-1", "127.0.0.1:9", 7)
        [message] = asked
        assert (message.tokens, message.uncached, message.prefix) == (300, 200, (1 << 63, 5))
        assert (message.channels, message.excluded) == (("p-1",), ("p-3",))
        current[0] = other
        await first.close()
        await leases.release(lease, "channel-closed", Computed(300, 1.0, 2.5))
        assert returned == [ReturnPrefill("ns/group", "l1", "channel-closed", 300, 1.0, 2.5)]
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
        replies = [PrefillPeers(""), PrefillPeers("t1", (PrefillPeer(InstanceID("p-1"), "127.0.0.1:9", 7),))]

        def watch(message: WatchPrefill, caller: object) -> PrefillPeers:
            asked.append(message)
            return replies.pop(0)

        rpc.handle(WatchPrefill, watch)
        loads: list[Decoded] = []

        def decoded(message: Decoded, caller: object) -> Ack:
            loads.append(message)
            return Ack()

        rpc.handle(Decoded, decoded)
        agent = Rpc("node-0", KEY)
        located: list[str] = []

        def locate(message: Locate, caller: object) -> Located:
            located.append(message.home_key)
            return Located(FunctionID("dispatch-0"), addr, 1)

        agent.handle(Locate, locate)
        leases = HomeLeases("ns/group", "d-1", await agent.listen_unix(str(tmp_path / "s")), KEY, 5.0)
        assert await leases.peers("") == ("", ())
        assert await leases.peers("t0") == ("t1", (Peer("p-1", "127.0.0.1:9", 7),))
        assert asked == [WatchPrefill("ns/group", ""), WatchPrefill("ns/group", "t0")]
        assert located == ["ns/group"] * 2, "a home that doesn't know may be one no longer"
        await leases.report(Load(100, 2.0, 0.5, 7))
        assert loads == [Decoded("ns/group", InstanceID("d-1"), 100, 2.0, 0.5, 7)]
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
        without = [await leases.lease("r", 1, wanted=Wanted(excluded=("a:1",))) for _ in range(3)]
        assert {lease.addr for lease in without} == {"b:2"}
        with pytest.raises(NoPrefill):
            await leases.lease("r", 1, wanted=Wanted(excluded=("a:1", "b:2")))
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
