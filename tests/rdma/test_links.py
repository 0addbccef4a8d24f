"""Channels that are kept over verbs: what is told of them, how many there are, and a network that falls silent."""

from __future__ import annotations

from functools import partial

import pytest

from runtimes.transport.listener import dial
from runtimes.transport.rungs import VERBS
from runtimes.vllm_pd import channels, metrics
from runtimes.vllm_pd.keeper import queue_pairs
from tests.rdma.machine import Nics, resources
from tests.runtimes.test_channels import Prefill, Told, channel_of, decode, quick, run, silent, until, up

__all__ = ["quick", "silent"]


@pytest.fixture(autouse=True)
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode dials from one end of the wire, prefill listens at the other."""
    monkeypatch.setattr(channels, "dial", partial(dial, rdma=Nics().at_near, window=1 << 20))


def prefill(name: str, generation: int = 1) -> Prefill:
    return Prefill(name, generation, rungs=VERBS, rdma=Nics().at_far)


def test_a_pair_is_told_with_device_address_and_packet_size_on_either_side(nics: Nics) -> None:
    async def test() -> None:
        p, side = prefill("p", 7), decode(rungs=VERBS)
        await side.get(p.lease)
        await until(lambda: up(p.accepted) == {"d": 1})
        for facts, device in ((side.facts(), nics.near), (p.accepted.facts(), nics.far)):
            [pair] = facts
            assert [rung["rung"] for rung in pair["rungs"]][-1] == "rdma-staged"
            for rung in pair["rungs"]:
                [port] = rung["ports"]
                assert port["device"] == f"{device}:1"
                assert port["gid"].count(".") == 3 or ":" in port["gid"]
                assert port["mtu"] in (256, 512, 1024, 2048, 4096)
        assert queue_pairs(channel_of(side, "p")) == 2
        await until(lambda: metrics.QUEUE_PAIRS._value.get() == 2)
        side.close()
        p.end()

    run(test())


def test_queue_pairs_are_bounded_however_many_peers_are_named() -> None:
    async def test() -> None:
        before = resources()[Nics.near]["qp"]
        peers = [prefill(f"p{n}") for n in range(4)]
        side = decode(rungs=VERBS, most=2)
        for _ in range(3):
            for each in peers:
                await until(lambda: all(kept.channel.lost is None for kept in side._kept.values()))
                for link in side._links.known.values():
                    link.used_at = 0.0  # nobody has it in hand any more
                await side.get(each.lease)
                assert len(up(side)) <= 2
        await until(lambda: resources()[Nics.near]["qp"] - before == 4)
        side.close()
        for each in peers:
            each.end()

    run(test())


@pytest.mark.usefixtures("silent")
def test_a_network_that_falls_silent_frees_both_sides_and_heals(
    nics: Nics, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        p, home, side = prefill("p"), Told(), decode(rungs=VERBS)
        side.follow(home)
        home.tell(p)
        await until(lambda: up(side) == {"p": 1} and up(p.accepted) == {"d": 1})
        both = channel_of(side, "p"), channel_of(p.accepted, "d")
        nics.lose_packets(100)
        await until(lambda: all(channel.lost is not None for channel in both))
        nics.lose_none()
        await until(lambda: up(side) == {"p": 1})
        assert channel_of(side, "p") is not both[0]
        side.close()
        p.end()

    run(test())
