"""Reads what the kernel says of RDMA devices, and decides nothing.

Files below `root`: /sys/class/infiniband, infiniband_verbs and net, /sys/module, /proc/self and /proc/driver/nvidia.
What isn't there is left out; a file that can't be read counts as not there. The packet size of an Ethernet port is
worked out from its interface, as the kernel does it (ib_addr.h, iboe_get_mtu); that of InfiniBand is known to pyverbs
only, which is asked where it is installed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from kserve_ext.cli.rdma.facts import DeviceFacts, Facts, PortFacts
from runtimes.transport.verbs.choice import MTUS, Device, Gid, GidKind, Link, Port, Wanted

#: Bytes of headers and check that RoCE reserves in a frame.
_ROCE_HEADERS: Final = 96
_IPC_LOCK: Final = 1 << 14
_KINDS: Final[dict[str, GidKind]] = {"IB/RoCE v1": "roce1", "RoCE v2": "roce2"}
#: Of mlx5, bnxt_re and soft-RoCE: what shows loss or congestion.
COUNTERS: Final = (
    "out_of_sequence",
    "out_of_seq_request",
    "packet_seq_err",
    "local_ack_timeout_err",
    "retry_exceeded_err",
    "rnr_nak_retry_err",
    "np_ecn_marked_roce_packets",
    "rp_cnp_handled",
)
_DCB_S: Final = 5.0


def read(
    root: Path = Path("/"),
    environ: Mapping[str, str] = os.environ,
    pfc: Callable[[str], tuple[int, ...] | None] | None = None,
    verbs: Callable[[], list[Device]] | None = None,
    wanted: Wanted = Wanted(),  # noqa: B008
) -> Facts:
    """`pfc` tells an interface's priorities, `verbs` what pyverbs sees; ImportError: it isn't installed."""
    why, seen = "", []
    if verbs is not None:
        try:
            seen = verbs()
        except ImportError as error:
            why = str(error)
        except OSError:
            pass  # pyverbs is there, devices are not
    ports = {(device.name, port.number): port for device in seen for port in device.ports}
    files = _files(root)
    found = []
    for folder in _folders(root / "sys/class/infiniband"):
        device = _device(folder, root, files.get(folder.name, ""), pfc)
        known = (replace(p, port=ports.get((device.name, p.port.number), p.port)) for p in device.ports)
        found.append(replace(device, ports=tuple(known)))
    granted = {
        name: tuple(filter(None, value.split(",")))
        for name, value in sorted(environ.items())
        if name.startswith("PCIDEVICE_") and not name.endswith("_INFO")
    }
    return Facts(
        devices=tuple(found),
        drivers=_drivers(root),
        modules=frozenset(folder.name for folder in _folders(root / "sys/module")),
        pyverbs=why,
        locked=_locked(root),
        ipc_lock=_ipc_lock(root),
        gpu=_text(root / "proc/driver/nvidia/version").partition("\n")[0],
        granted=granted,
        wanted=wanted,
    )


def ask_dcb(interface: str) -> tuple[int, ...] | None:
    """Priorities with PFC, from `dcb pfc show`: "prio-pfc 0:off 1:off 2:off 3:on"."""
    command = ["dcb", "pfc", "show", "dev", interface, "prio-pfc"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=_DCB_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    words = (word.partition(":") for word in text.split())
    return tuple(int(number) for number, _, state in words if number.isdigit() and state == "on")


def ask_verbs() -> list[Device]:
    """What pyverbs sees. ImportError without it, OSError without devices."""
    from runtimes.transport.verbs import native

    return native.devices()


def _device(
    folder: Path, root: Path, file: str, pfc: Callable[[str], tuple[int, ...] | None] | None
) -> DeviceFacts:
    hardware = folder / "device"
    driver = _target(hardware / "driver")
    ports = tuple(
        _port(each, root, pfc if driver else None)
        for each in sorted(_folders(folder / "ports"), key=lambda each: int(each.name))
    )
    most = _number(hardware / "sriov_totalvfs")
    return DeviceFacts(
        name=folder.name,
        ports=ports,
        driver=driver,
        address=_target(hardware) if driver else "",
        file=file,
        opens=bool(file) and os.access(root / "dev/infiniband" / file, os.R_OK | os.W_OK),
        virtual=(hardware / "physfn").exists(),
        functions=(_number(hardware / "sriov_numvfs"), most) if most else None,
    )


def _port(folder: Path, root: Path, pfc: Callable[[str], tuple[int, ...] | None] | None) -> PortFacts:
    link: Link = "ethernet" if _text(folder / "link_layer") == "Ethernet" else "infiniband"
    state = _text(folder / "state").rpartition(": ")[2]
    gids = tuple(_gids(folder, ethernet=link == "ethernet"))
    interface = next(filter(None, (_text(folder / f"gid_attrs/ndevs/{gid.number}") for gid in gids)), "")
    net = root / "sys/class/net" / interface
    mtu = _number(net / "mtu") if interface else 0
    fits = [size for size in MTUS if link == "infiniband" or size <= mtu - _ROCE_HEADERS]
    counters = {name: _number(folder / "hw_counters" / name) for name in COUNTERS}
    return PortFacts(
        port=Port(
            int(folder.name),
            link,
            state == "ACTIVE",
            max(fits, default=0),
            int(_text(folder / "lid") or "0", 16),
            gids,
        ),
        state=state,
        rate=_text(folder / "rate"),
        interface=interface,
        interface_mtu=mtu,
        pfc=pfc(interface) if pfc is not None and interface else None,
        ecn=_ecn(net / "ecn") if interface else None,
        counters={name: count for name, count in counters.items() if count},
    )


def _gids(folder: Path, *, ethernet: bool) -> Iterator[Gid]:
    for entry in sorted(_folders(folder / "gids"), key=lambda entry: int(entry.name)):
        value = _text(entry)
        if value.replace(":", "").strip("0"):
            kind = _KINDS.get(_text(folder / "gid_attrs/types" / entry.name), "roce1")
            yield Gid(int(entry.name), value, kind if ethernet else "infiniband")


def _ecn(folder: Path) -> tuple[int, ...] | None:
    """NVIDIA's own driver has it here, for the side that marks and the one that slows down; both are needed."""
    sides = [_folders(folder / side / "enable") for side in ("roce_np", "roce_rp")]
    if not all(sides):
        return None
    on = [{int(each.name) for each in side if _text(each) == "1"} for side in sides]
    return tuple(sorted(on[0] & on[1]))


def _files(root: Path) -> dict[str, str]:
    """Device -> the name of its file in /dev/infiniband."""
    return {
        _text(folder / "ibdev"): folder.name
        for folder in _folders(root / "sys/class/infiniband_verbs")
        if folder.name.startswith("uverbs")
    }


def _drivers(root: Path) -> dict[str, str]:
    found = {each.name: _target(each / "device/driver") for each in _folders(root / "sys/class/net")}
    return {name: driver for name, driver in found.items() if driver}


def _locked(root: Path) -> int | None:
    for line in _text(root / "proc/self/limits").splitlines():
        if line.startswith("Max locked memory"):
            soft = line.split()[3]
            return None if soft == "unlimited" else int(soft)
    return None


def _ipc_lock(root: Path) -> bool:
    for line in _text(root / "proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & _IPC_LOCK)
    return False


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isdigit() else 0


def _target(path: Path) -> str:
    """The last name of where a link leads."""
    return path.resolve().name if path.exists() else ""
