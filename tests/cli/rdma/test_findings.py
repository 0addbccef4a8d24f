"""What is said of a machine, and what to do about it: one change each to a card that is as it should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kserve_ext.cli.findings import Finding
from kserve_ext.cli.rdma import findings, reading
from kserve_ext.cli.rdma.facts import DeviceFacts, Facts, PortFacts
from runtimes.transport.verbs.choice import Gid, Port, Wanted
from tests.cli.rdma.trees import IPV4, connectx

GOOD_PORT = PortFacts(
    Port(1, "ethernet", True, 4096, gids=(Gid(3, IPV4, "roce2"),)), "ACTIVE", "", "ens0", 9000, pfc=(3,)
)
GOOD = DeviceFacts("mlx5_0", (GOOD_PORT,), "mlx5_core", "0000:3b:00.0", "uverbs0", opens=True)
MACHINE = Facts((GOOD,))
NVIDIA = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.0"

Change = Callable[[Facts], Facts]


def device(**changes: Any) -> Change:
    return lambda facts: replace(facts, devices=(replace(facts.devices[0], **changes),))


def port(**changes: Any) -> Change:
    return device(ports=(replace(GOOD_PORT, **changes),))


def verbs(**changes: Any) -> Change:
    return port(port=replace(GOOD_PORT.port, **changes))


def machine(**changes: Any) -> Change:
    return lambda facts: replace(facts, **changes)


def said(facts: Facts, part: str) -> Finding:
    (found,) = [finding for finding in findings.judge(facts) if part in finding.what]
    return found


def test_a_machine_as_it_should_be_has_nothing_to_do() -> None:
    found = findings.judge(MACHINE)
    assert found[0] == Finding("ok", "usable for KV, best first: mlx5_0:1")
    assert {finding.level for finding in found} == {"ok"}
    assert not any(finding.do for finding in found)


@pytest.mark.parametrize(
    ("change", "says", "do"),
    [
        (machine(devices=()), "no RDMA device", "rdma link add rxe0 type rxe"),
        (machine(devices=(), drivers={"ens0": "ice"}), "no RDMA device, though ens0", "modprobe irdma"),
        (machine(pyverbs="No module named 'pyverbs'"), "pyverbs can't be loaded", "ibverbs-providers"),
        (machine(pyverbs="No module named 'pyverbs'"), "pyverbs can't be loaded", "dist-packages/pyverbs /"),
        (machine(wanted=Wanted(("mlx5_7",))), "mlx5_7 is not here", "GALAXY_RDMA_DEVICES"),
        (machine(wanted=Wanted(network="192.0.2.0/24")), "no address in 192.0.2.0/24", "GALAXY_RDMA_NETWORK"),
        (machine(locked=65536), "locked memory: 64 KiB, and a channel needs 32 MiB", "IPC_LOCK"),
        (device(file="", opens=False), "no uverbs", "modprobe ib_uverbs"),
        (device(opens=False), "/dev/infiniband/uverbs0 is not here", "resources.limits"),
        (verbs(up=False), "has no link", "ip link set INTERFACE up"),
        (verbs(mtu=0), "has a packet size of 0 bytes", "mtu 4200"),
        (verbs(gids=()), "has no address", "ip addr add"),
        (verbs(gids=(Gid(0, IPV4, "roce1"),)), "RoCE v1 addresses only", "RoCE v2"),
        (verbs(link="infiniband", gids=(Gid(0, IPV4, "infiniband"),)), "no LID", "opensm"),
    ],
)
def test_what_leaves_nothing_usable_fails(change: Change, says: str, do: str) -> None:
    facts = change(MACHINE)
    found = said(facts, says)
    assert not findings.usable(facts)
    assert found.level == "failed"
    assert do in found.do


@pytest.mark.parametrize(
    ("change", "level", "says", "do"),
    [
        (machine(locked=640 << 20), "warning", "640 MiB, about 20 channels", "ulimit -l unlimited"),
        (machine(locked=65536, ipc_lock=True), "ok", "any amount (IPC_LOCK)", ""),
        (machine(gpu=NVIDIA), "warning", "GPU memory can't be registered", "modprobe nvidia_peermem"),
        (machine(gpu=NVIDIA, modules=frozenset(["nvidia_peermem"])), "ok", "nvidia_peermem is loaded", ""),
        (machine(gpu="NVIDIA UNIX Open Kernel Module"), "ok", "by dma-buf", ""),
        (machine(granted={"PCIDEVICE_A": ("0000:3b:00.0",)}), "ok", "PCIDEVICE_A gives 0000:3b:00.0", ""),
        (machine(granted={"PCIDEVICE_A": ("0000:5e:00.1",)}), "warning", "PCIDEVICE_A gives", "isRdma"),
        (device(virtual=True), "ok", "a virtual function", ""),
        (device(functions=(4, 8)), "ok", "4 of 8 virtual functions", ""),
        (device(functions=(0, 8)), "ok", "0 of 8", "echo 8 > /sys/bus/pci/devices/0000:3b:00.0/sriov_numvfs"),
        (verbs(mtu=1024), "warning", "packets of 1024 bytes", "ip link set ens0 mtu 9000"),
        (port(pfc=(), ecn=()), "warning", "neither PFC nor ECN", "dcb pfc set dev ens0 prio-pfc 3:on"),
        (port(pfc=None), "ok", "can't be told from here", "dcb pfc set dev ens0"),
        (port(pfc=(), ecn=(3, 4)), "ok", "ECN on priority 3, 4", ""),
        (port(pfc=None, counters={"rp_cnp_handled": 7}), "ok", "congestion was notified 7 times", ""),
        (port(counters={"out_of_sequence": 9}), "warning", "packets were lost", "PFC and ECN"),
    ],
)
def test_what_only_makes_it_worse(change: Change, level: str, says: str, do: str) -> None:
    facts = change(MACHINE)
    found = said(facts, says)
    assert found.level == level
    assert do in found.do
    assert bool(do) == bool(found.do)
    assert findings.usable(facts)


def test_a_device_that_is_of_no_use_beside_one_that_is_only_warns(tmp_path: Path) -> None:
    connectx(tmp_path).locked("unlimited")
    facts = reading.read(tmp_path, {})
    assert said(facts, "mlx5_1:1 has no link").level == "warning"
    assert [(row[0], row[3], row[6], row[8], row[-1]) for row in findings.rows(facts)] == [
        ("mlx5_0", "ACTIVE", "4096 of 9000", "10.8.0.3", "yes"),
        ("mlx5_1", "DOWN", "4096 of 9000", "-", "no"),
    ]


def test_a_device_that_was_not_asked_for_is_not_complained_about(tmp_path: Path) -> None:
    connectx(tmp_path)
    facts = replace(reading.read(tmp_path, {}), wanted=Wanted(("mlx5_0",)))
    assert not [finding for finding in findings.judge(facts) if "not asked for" in finding.what]
