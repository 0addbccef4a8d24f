"""What the facts mean: each a line that is ok, a warning (it works, but worse) or a failure, with the remedy. Pure.

Usable means what the transport means by it (runtimes/transport/verbs/choice.py), with the device file and pyverbs on
top that it needs. Whatever only makes RDMA slow or lossy is a warning; only what leaves nothing usable fails.
"""

from __future__ import annotations

import ipaddress
import sysconfig
from collections.abc import Iterator
from typing import Final

from kserve_ext.cli.findings import Finding, Level
from kserve_ext.cli.rdma.facts import DeviceFacts, Facts, PortFacts
from runtimes.transport.pair import WINDOW
from runtimes.transport.verbs.choice import MTUS, Place, places

COLUMNS: Final = ("DEVICE", "PORT", "LINK", "STATE", "RATE", "INTERFACE", "MTU", "GID", "ADDRESS", "USABLE")
#: Driver of a network interface -> the module that makes an RDMA device of the same card.
MODULES: Final = {
    "bnxt_en": "bnxt_re",
    "cxgb4": "iw_cxgb4",
    "hns3": "hns_roce_hw_v2",
    "i40e": "irdma",
    "ice": "irdma",
    "mlx4_core": "mlx4_ib",
    "mlx5_core": "mlx5_ib",
    "qede": "qedr",
}
INSTALL: Final = (
    "apt install --no-install-recommends ibverbs-providers librdmacm1, and python3-pyverbs; a virtual environment "
    f"sees it after ln -s /usr/lib/python3/dist-packages/pyverbs {sysconfig.get_path('platlib')}"
)
IN_A_POD: Final = "in a pod, ask the device plugin for its resource (resources.limits)"
SOFTWARE: Final = "to try it without a NIC: modprobe rdma_rxe && rdma link add rxe0 type rxe netdev INTERFACE"
#: Bytes that a channel locks: its ring, and less than as much again for buffers.
_CHANNEL: Final = 2 * WINDOW
_LOST: Final = (
    "out_of_sequence",
    "out_of_seq_request",
    "packet_seq_err",
    "local_ack_timeout_err",
    "retry_exceeded_err",
)
_PEER_MODULES: Final = ("nvidia_peermem", "nv_peer_mem")


def usable(facts: Facts) -> list[Place]:
    """What a channel could use, best first."""
    return [] if facts.pyverbs or _short(facts) else _fit(facts)


def rows(facts: Facts) -> list[tuple[str, ...]]:
    """One for each port: cells for COLUMNS."""
    good = {(place.device, place.port) for place in usable(facts)}
    chosen = {(place.device, place.port): place for place in _found(facts)[0]}
    return [_row(device, each, chosen, good) for device in facts.devices for each in device.ports]


def spoken(gid: str) -> str:
    """A GID as people know it: 10.8.0.3, 2001:db8::7."""
    address = ipaddress.IPv6Address(gid)
    return str(address.ipv4_mapped or address)


def judge(facts: Facts) -> list[Finding]:
    """All of it; the first finding says whether anything is usable."""
    good = usable(facts)
    found = [*_devices(facts), *_pyverbs(facts), *_memory(facts), *_peer_memory(facts), *_granted(facts)]
    for device in facts.devices:
        found += _functions(device)
        for each in device.ports:
            if each.port.up:
                found += _quality(f"{device.name}:{each.port.number}", device, each)
    if good:
        names = ", ".join(f"{place.device}:{place.port}" for place in good)
        return [Finding("ok", f"usable for KV, best first: {names}"), *found]
    return [Finding("failed", "nothing is usable for KV over RDMA", "what the lines below say"), *found]


def _found(facts: Facts) -> tuple[list[Place], list[str]]:
    return places([device.device() for device in facts.devices], facts.wanted)


def _fit(facts: Facts) -> list[Place]:
    """What is usable as far as devices go."""
    opens = {device.name for device in facts.devices if device.opens}
    return [place for place in _found(facts)[0] if place.device in opens]


def _row(
    device: DeviceFacts,
    each: PortFacts,
    chosen: dict[tuple[str, int], Place],
    good: set[tuple[str, int]],
) -> tuple[str, ...]:
    port = each.port
    place = chosen.get((device.name, port.number))
    shown = next((gid for gid in port.gids if place is not None and gid.number == place.gid_index), None)
    size = "-" if port.link == "infiniband" and not port.mtu else str(port.mtu)
    return (
        device.name,
        str(port.number),
        port.link,
        each.state or "-",
        each.rate or "-",
        each.interface or "-",
        f"{size} of {each.interface_mtu}" if each.interface_mtu else size,
        "-" if shown is None else str(shown.number),
        "-" if shown is None else spoken(shown.value),
        "yes" if (device.name, port.number) in good else "no",
    )


def _devices(facts: Facts) -> Iterator[Finding]:
    found, refused = _found(facts)
    if not facts.devices:
        modules = {MODULES[driver] for driver in facts.drivers.values() if driver in MODULES}
        if modules:
            what = f"no RDMA device, though {', '.join(sorted(facts.drivers))} might be one"
            yield Finding("failed", what, f"modprobe {' '.join(sorted(modules))}; {IN_A_POD}")
        else:
            do = f"put in a NIC that knows RDMA and load its driver; {IN_A_POD}; {SOFTWARE}"
            yield Finding("failed", "no RDMA device: /sys/class/infiniband has none", do)
    others: Level = "warning" if _fit(facts) else "failed"
    for why in refused:
        if not why.endswith("was not asked for"):
            yield Finding(others, why, _remedy(why))
    for device in facts.devices:
        if not any(place.device == device.name for place in found):
            continue
        if not device.file:
            yield Finding(others, f"{device.name}: the kernel has no uverbs for it", "modprobe ib_uverbs")
        elif not device.opens:
            what = f"{device.name}: /dev/infiniband/{device.file} is not here, or may not be opened"
            yield Finding(others, what, f"{IN_A_POD}; elsewhere: chmod or a group for the file")


def _remedy(why: str) -> str:
    """For a reason of `places`."""
    for part, do in (
        ("no link", "ip link set INTERFACE up; look at the cable and the switch's port"),
        ("no LID", "start a subnet manager (opensm), or use the switch's"),
        ("RoCE v1", "give its interface an IP address, and the device RoCE v2"),
        ("no address in", "give the interface an address there, or change GALAXY_RDMA_NETWORK"),
        ("no address", "ip addr add ADDRESS/LENGTH dev INTERFACE"),
        ("is not here", "change GALAXY_RDMA_DEVICES to a device of this machine"),
        ("packet size", "ip link set INTERFACE mtu 4200 or more"),
    ):
        if part in why:
            return do
    return ""


def _pyverbs(facts: Facts) -> Iterator[Finding]:
    if facts.pyverbs:
        yield Finding("failed", f"pyverbs can't be loaded: {facts.pyverbs}", INSTALL)
    else:
        yield Finding("ok", "pyverbs can be loaded")


def _short(facts: Facts) -> bool:
    """Whether not even one channel's memory may be locked."""
    return not facts.ipc_lock and facts.locked is not None and facts.locked < _CHANNEL


def _memory(facts: Facts) -> Iterator[Finding]:
    do = "ulimit -l unlimited, or the capability IPC_LOCK (securityContext.capabilities.add)"
    if facts.ipc_lock:
        yield Finding("ok", "locked memory: any amount (IPC_LOCK)")
    elif facts.locked is None:
        yield Finding("ok", "locked memory: any amount (ulimit -l)")
    elif _short(facts):
        what = f"locked memory: {facts.locked >> 10} KiB, and a channel needs {_CHANNEL >> 20} MiB"
        yield Finding("failed", what, do)
    else:
        count = facts.locked // _CHANNEL
        yield Finding("warning", f"locked memory: {facts.locked >> 20} MiB, about {count} channels", do)


def _peer_memory(facts: Facts) -> Iterator[Finding]:
    if not facts.gpu:
        yield Finding("ok", "no NVIDIA driver: KV lies in the host's memory")
        return
    module = next((name for name in _PEER_MODULES if name in facts.modules), "")
    if module:
        yield Finding("ok", f"GPU memory can be registered: {module} is loaded")
    elif "Open Kernel Module" in facts.gpu:
        yield Finding("ok", "GPU memory can be registered: by dma-buf, with NVIDIA's open driver")
    else:
        do = "modprobe nvidia_peermem, or use NVIDIA's open driver, which knows dma-buf"
        yield Finding("warning", "GPU memory can't be registered: KV is staged in pinned host memory", do)


def _granted(facts: Facts) -> Iterator[Finding]:
    here = {device.address for device in facts.devices if device.address}
    for name, addresses in facts.granted.items():
        missing = [address for address in addresses if address not in here]
        if missing:
            what = f"{name} gives {', '.join(missing)}, and no RDMA device here has that address"
            yield Finding("warning", what, "set isRdma in the device plugin's configuration")
        else:
            yield Finding("ok", f"{name} gives {', '.join(addresses)}")


def _functions(device: DeviceFacts) -> Iterator[Finding]:
    if device.virtual:
        yield Finding("ok", f"{device.name}: a virtual function (SR-IOV)")
    elif device.functions is not None:
        made, most = device.functions
        do = (
            "" if made else f"for one a pod: echo {most} > /sys/bus/pci/devices/{device.address}/sriov_numvfs"
        )
        yield Finding("ok", f"{device.name}: {made} of {most} virtual functions (SR-IOV)", do)


def _quality(name: str, device: DeviceFacts, each: PortFacts) -> Iterator[Finding]:
    port = each.port
    if MTUS[0] <= port.mtu < MTUS[-1]:
        do = f"ip link set {each.interface} mtu 9000, and the same on the way" if each.interface else ""
        yield Finding("warning", f"{name}: packets of {port.mtu} bytes, {MTUS[-1]} would cost less", do)
    if port.link == "ethernet" and device.driver:
        yield from _lossless(name, each)
    lost = {count: each.counters[count] for count in _LOST if each.counters.get(count)}
    if lost:
        said = ", ".join(f"{count} {number}" for count, number in lost.items())
        yield Finding("warning", f"{name}: packets were lost since it came up ({said})", "see PFC and ECN")


def _lossless(name: str, each: PortFacts) -> Iterator[Finding]:
    """Without one of them RoCE loses packets. The switches need the same, which can't be seen from here."""
    marked = each.counters.get("np_ecn_marked_roce_packets", 0) + each.counters.get("rp_cnp_handled", 0)
    hints = []
    if each.pfc:
        hints.append(f"PFC on priority {_list(each.pfc)}")
    if each.ecn:
        hints.append(f"ECN on priority {_list(each.ecn)}")
    if marked:
        hints.append(f"congestion was notified {marked} times")
    if hints:
        yield Finding("ok", f"{name}: {', '.join(hints)}")
        return
    do = f"dcb pfc set dev {each.interface} prio-pfc 3:on, or ECN (cma_roce_tos, DSCP), and the same on switches"
    if each.pfc is None and each.ecn is None:
        yield Finding("ok", f"{name}: whether PFC or ECN is on can't be told from here", do)
    else:
        yield Finding("warning", f"{name}: neither PFC nor ECN: packets are lost under load", do)


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
