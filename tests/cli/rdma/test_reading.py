"""What is read of recorded trees; a machine without anything is read, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_ext.cli.rdma import reading
from kserve_ext.cli.rdma.facts import Facts
from runtimes.transport.verbs.choice import Device, Port
from tests.cli.rdma.trees import IPV4, LINK_LOCAL, Tree, connectx


def test_a_machine_without_anything(tmp_path: Path) -> None:
    assert reading.read(tmp_path, {}) == Facts()


def test_a_card_with_two_devices(tmp_path: Path) -> None:
    tree = connectx(tmp_path)
    tree.module("nvidia_peermem")
    facts = reading.read(tmp_path, {}, pfc=lambda interface: (3,) if interface == "ens0" else ())
    one, two = facts.devices
    assert (one.name, one.driver, one.address, one.file, one.opens) == (
        "mlx5_0",
        "mlx5_core",
        "0000:3b:00.0",
        "uverbs0",
        True,
    )
    assert (one.functions, two.functions, one.virtual) == ((4, 8), (0, 8), False)
    (each,) = one.ports
    assert (each.port.link, each.port.up, each.port.mtu, each.state) == ("ethernet", True, 4096, "ACTIVE")
    assert [(gid.number, gid.value, gid.kind) for gid in each.port.gids] == [
        (0, LINK_LOCAL, "roce1"),
        (1, LINK_LOCAL, "roce2"),
        (2, IPV4, "roce1"),
        (3, IPV4, "roce2"),
    ]
    assert (each.interface, each.interface_mtu, each.rate, each.pfc) == (
        "ens0",
        9000,
        "100 Gb/sec (4X EDR)",
        (3,),
    )
    assert (two.ports[0].port.up, two.ports[0].state, two.ports[0].pfc) == (False, "DOWN", ())
    assert facts.modules == {"nvidia_peermem"}
    assert facts.drivers == {"ens0": "mlx5_core", "ens1": "mlx5_core"}


@pytest.mark.parametrize(
    ("interface", "packet"), [(9000, 4096), (4192, 4096), (4191, 2048), (1500, 1024), (300, 0)]
)
def test_the_packet_size_follows_from_the_interface(tmp_path: Path, interface: int, packet: int) -> None:
    tree = connectx(tmp_path)
    tree.interface("ens0", interface)
    assert reading.read(tmp_path, {}).devices[0].ports[0].port.mtu == packet


def test_infiniband_has_a_lid_and_no_interface(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.device("mlx5_0", "0000:3b:00.0", "mlx5_core", file="uverbs0")
    tree.port("mlx5_0", link="InfiniBand", lid="0x11", gids=((LINK_LOCAL, "IB/RoCE v1"),))
    (each,) = reading.read(tmp_path, {}).devices[0].ports
    assert (each.port.link, each.port.lid, each.interface) == ("infiniband", 17, "")
    assert [gid.kind for gid in each.port.gids] == ["infiniband"]


def test_what_pyverbs_knows_better_is_taken(tmp_path: Path) -> None:
    connectx(tmp_path)
    port = Port(1, "ethernet", True, 1024)
    facts = reading.read(tmp_path, {}, verbs=lambda: [Device("mlx5_0", (port,))])
    assert (facts.devices[0].ports[0].port, facts.pyverbs) == (port, "")


def test_why_pyverbs_can_not_be_loaded_is_kept(tmp_path: Path) -> None:
    def verbs() -> list[Device]:
        raise ImportError("libibverbs.so.1: not found")

    assert reading.read(tmp_path, {}, verbs=verbs).pyverbs == "libibverbs.so.1: not found"


@pytest.mark.parametrize(
    ("soft", "mask", "locked", "capable"),
    [
        ("8388608", "00000000a80425fb", 8388608, False),  # what Docker gives
        ("unlimited", "0000000000000000", None, False),
        ("65536", "0000000000004000", 65536, True),
        ("65536", "000001ffffffffff", 65536, True),
    ],
)
def test_limits_and_capabilities(
    tmp_path: Path, soft: str, mask: str, locked: int | None, capable: bool
) -> None:
    tree = Tree(tmp_path)
    tree.locked(soft)
    tree.capable(mask)
    facts = reading.read(tmp_path, {})
    assert (facts.locked, facts.ipc_lock) == (locked, capable)


def test_congestion_and_errors_of_a_port(tmp_path: Path) -> None:
    tree = connectx(tmp_path)
    for side, on in (("roce_np", "35"), ("roce_rp", "3")):
        for priority in range(8):
            tree.file(f"sys/class/net/ens0/ecn/{side}/enable/{priority}", int(str(priority) in on))
    for name, count in (("out_of_sequence", 12), ("packet_seq_err", 0)):
        tree.file(f"sys/class/infiniband/mlx5_0/ports/1/hw_counters/{name}", count)
    (each,) = reading.read(tmp_path, {}).devices[0].ports
    assert (each.ecn, each.pfc, each.counters) == ((3,), None, {"out_of_sequence": 12})


def test_devices_of_a_plugin_and_the_gpu_driver(tmp_path: Path) -> None:
    Tree(tmp_path).file(
        "proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Open Kernel Module\nGCC version"
    )
    given = {"PCIDEVICE_EXAMPLE_COM_NIC": "0000:3b:00.2,0000:3b:00.3", "PCIDEVICE_EXAMPLE_COM_NIC_INFO": "{}"}
    facts = reading.read(tmp_path, given)
    assert facts.granted == {"PCIDEVICE_EXAMPLE_COM_NIC": ("0000:3b:00.2", "0000:3b:00.3")}
    assert facts.gpu == "NVRM version: NVIDIA UNIX Open Kernel Module"
