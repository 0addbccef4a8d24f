"""Which port and address is chosen from what a machine has, and why others are not."""

from __future__ import annotations

import dataclasses

import pytest

from runtimes.transport.verbs.choice import (
    Device,
    Gid,
    Place,
    Port,
    Wanted,
    common_mtu,
    objection,
    places,
    rails,
)

LINK_LOCAL = "fe80:0000:0000:0000:0000:00ff:fe00:0001"
IPV4 = "0000:0000:0000:0000:0000:ffff:0a08:0003"  # 10.8.0.3
IPV6 = "2001:0db8:0000:0000:0000:0000:0000:0007"
NOTHING = "0000:0000:0000:0000:0000:0000:0000:0000"
ROCE = Port(
    1,
    "ethernet",
    True,
    4096,
    gids=(
        Gid(0, LINK_LOCAL, "roce1"),
        Gid(1, LINK_LOCAL, "roce2"),
        Gid(2, IPV4, "roce1"),
        Gid(3, IPV4, "roce2"),
        Gid(4, IPV6, "roce2"),
        Gid(5, NOTHING, "roce2"),
    ),
)
INFINIBAND = Port(1, "infiniband", True, 4096, lid=17, gids=(Gid(0, LINK_LOCAL, "infiniband"),))


def only(port: Port, wanted: Wanted = Wanted()) -> Place | str:  # noqa: B008
    found, refused = places([Device("mlx5_0", (port,))], wanted)
    assert len(found) + len(refused) == 1
    return found[0] if found else refused[0]


def test_an_ipv4_address_of_roce_v2_is_preferred() -> None:
    place = only(ROCE)
    assert isinstance(place, Place)
    assert (place.gid_index, place.gid, place.family, place.mtu) == (3, IPV4, "ipv4", 4096)


@pytest.mark.parametrize(
    ("network", "index", "family"),
    [("10.0.0.0/8", 3, "ipv4"), ("2001:db8::/32", 4, "ipv6"), ("fe80::/10", 1, "link-local")],
)
def test_a_network_names_the_address(network: str, index: int, family: str) -> None:
    place = only(ROCE, Wanted(network=network))
    assert isinstance(place, Place)
    assert (place.gid_index, place.family) == (index, family)


def test_infiniband_uses_its_first_gid_and_its_lid() -> None:
    place = only(INFINIBAND)
    assert isinstance(place, Place)
    assert (place.gid_index, place.lid, place.family) == (0, 17, "infiniband")


@pytest.mark.parametrize(
    ("port", "wanted", "says"),
    [
        (dataclasses.replace(ROCE, up=False), Wanted(), "mlx5_0:1 has no link"),
        (dataclasses.replace(ROCE, gids=()), Wanted(), "no address: has its interface an IP address?"),
        (dataclasses.replace(ROCE, gids=ROCE.gids[:1]), Wanted(), "RoCE v1 addresses only"),
        (dataclasses.replace(ROCE, gids=ROCE.gids[5:]), Wanted(), "no address"),
        (dataclasses.replace(ROCE, mtu=128), Wanted(), "packet size of 128 bytes"),
        (dataclasses.replace(INFINIBAND, lid=0), Wanted(), "no LID: does a subnet manager run?"),
        (dataclasses.replace(INFINIBAND, gids=()), Wanted(), "has no GID"),
        (ROCE, Wanted(network="192.0.2.0/24"), "no address in 192.0.2.0/24"),
        (ROCE, Wanted(("mlx5_0:2", "mlx5_0:1")), ""),
    ],
)
def test_what_is_not_usable_says_why(port: Port, wanted: Wanted, says: str) -> None:
    found, refused = places([Device("mlx5_0", (port,))], wanted)
    assert bool(found) == (not says)
    assert says in "; ".join(refused)


def test_devices_come_in_the_order_in_which_they_were_asked_for() -> None:
    devices = [Device(name, (ROCE,)) for name in ("mlx5_0", "mlx5_1", "mlx5_2")]
    found, refused = places(devices, Wanted(("mlx5_2", "mlx5_0", "mlx5_7")))
    assert [place.device for place in found] == ["mlx5_2", "mlx5_0"]
    assert refused == ["mlx5_1:1 was not asked for", "mlx5_7 is not here"]


def test_a_named_port_comes_where_it_was_named() -> None:
    device = Device("mlx5_0", (ROCE, dataclasses.replace(ROCE, number=2)))
    found, _ = places([device], Wanted(("mlx5_0:2", "mlx5_0:1")))
    assert [place.port for place in found] == [2, 1]


def test_two_sides_talk_only_over_one_kind_of_link_and_address() -> None:
    roce, infiniband = only(ROCE), only(INFINIBAND)
    assert isinstance(roce, Place)
    assert isinstance(infiniband, Place)
    assert objection(roce, "ethernet", "ipv4") == ""
    assert objection(roce, "ethernet", "ipv6") == "address family: ipv4 here, ipv6 there"
    assert (
        objection(roce, infiniband.link, infiniband.family) == "link layer: ethernet here, infiniband there"
    )


@pytest.mark.parametrize(
    ("mine", "theirs", "both"), [(4096, 1024, 1024), (4096, 4096, 4096), (1500, 4096, 1024)]
)
def test_the_packet_size_is_what_both_can_take(mine: int, theirs: int, both: int) -> None:
    assert common_mtu(mine, theirs) == both


def test_a_device_that_can_not_be_opened_does_not_hide_the_others() -> None:
    devices = [Device("mlx5_0", (), shut="No such file or directory"), Device("mlx5_1", (ROCE,))]
    found, refused = places(devices, Wanted(("mlx5_0", "mlx5_1")))
    assert [place.device for place in found] == ["mlx5_1"]
    assert refused == ["mlx5_0 can't be opened: No such file or directory"]


def at(address: str, family: str = "ipv4") -> Place:
    place = only(ROCE)
    assert isinstance(place, Place)
    return dataclasses.replace(place, gid=address, family=family)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mine", "theirs", "named", "pairs"),
    [
        (["10.8.0.1", "10.8.1.1"], ["10.8.1.2", "10.8.0.2"], False, [(1, 0), (0, 1)]),
        (["10.8.0.1", "10.8.1.1"], ["10.9.0.2", "10.8.1.2"], False, [(1, 1)]),
        (["10.8.0.1", "10.8.1.1"], ["10.9.0.2", "10.9.1.2"], False, [(0, 0)]),  # routed, it is to be hoped
        (["10.8.0.1", "10.8.1.1"], ["10.9.0.2", "10.8.1.2"], True, [(0, 0), (1, 1)]),
        (["10.8.0.1"], ["10.8.0.2", "10.8.0.3"], True, [(0, 0)]),
        ([], ["10.8.0.2"], True, []),
    ],
)
def test_rails_are_pairs_of_devices(
    mine: list[str], theirs: list[str], named: bool, pairs: list[tuple[int, int]]
) -> None:
    here, there = ([at(f"::ffff:{each}") for each in side] for side in (mine, theirs))
    assert rails(here, there, named) == pairs


def test_rails_of_another_kind_of_address_are_left_out() -> None:
    both = [at("::ffff:10.8.0.1"), at("2001:db8::1", "ipv6")]
    assert rails(both, both[::-1], named=True) == [(1, 0), (0, 1)]
    assert rails(both, [at("2001:db8::2", "ipv6"), at("2001:db8::3", "ipv6")], named=True) == [(1, 0)]
    assert rails(both[:1], both[1:], named=True) == []
