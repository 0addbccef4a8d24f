"""Trees of /sys and /proc as machines have them, made below a folder of a test."""

from __future__ import annotations

from pathlib import Path

IPV4 = "0000:0000:0000:0000:0000:ffff:0a08:0003"
LINK_LOCAL = "fe80:0000:0000:0000:0e42:a1ff:fe00:0001"
NOTHING = "0000:0000:0000:0000:0000:0000:0000:0000"
LIMITS = "Limit                     Soft Limit           Hard Limit           Units\n"


class Tree:
    """The machine below `root`; without anything at first."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file("proc/self/status", "Name:\tpython3\nCapEff:\t0000000000000000\n")
        self.locked("8388608")

    def file(self, path: str, text: object) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{text}\n")

    def link(self, path: str, to: str) -> None:
        place, target = self.root / path, self.root / to
        place.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(target)

    def locked(self, soft: str) -> None:
        line = f"Max locked memory         {soft:20} {soft:20} bytes"
        self.file("proc/self/limits", f"{LIMITS}{line}")

    def capable(self, mask: str) -> None:
        self.file("proc/self/status", f"Name:\tpython3\nCapEff:\t{mask}")

    def module(self, name: str) -> None:
        (self.root / "sys/module" / name).mkdir(parents=True)

    def interface(self, name: str, mtu: int = 1500, pci: str = "", driver: str = "") -> None:
        self.file(f"sys/class/net/{name}/mtu", mtu)
        if driver:
            self.link(f"sys/devices/{pci}/driver", f"sys/bus/pci/drivers/{driver}")
            self.link(f"sys/class/net/{name}/device", f"sys/devices/{pci}")

    def device(
        self, name: str, pci: str = "", driver: str = "", *, opens: bool = True, file: str = ""
    ) -> None:
        (self.root / f"sys/class/infiniband/{name}").mkdir(parents=True)
        if driver:
            self.link(f"sys/devices/{pci}/driver", f"sys/bus/pci/drivers/{driver}")
            self.link(f"sys/class/infiniband/{name}/device", f"sys/devices/{pci}")
        if file:
            self.file(f"sys/class/infiniband_verbs/{file}/ibdev", name)
            if opens:
                self.file(f"dev/infiniband/{file}", "")

    def port(
        self,
        device: str,
        *,
        link: str = "Ethernet",
        state: str = "4: ACTIVE",
        lid: str = "0x0",
        rate: str = "100 Gb/sec (4X EDR)",
        interface: str = "",
        gids: tuple[tuple[str, str], ...] = (),
    ) -> str:
        """The folder of port 1. `gids`: value and type each."""
        folder = f"sys/class/infiniband/{device}/ports/1"
        for name, text in (("link_layer", link), ("state", state), ("lid", lid), ("rate", rate)):
            self.file(f"{folder}/{name}", text)
        for number, (value, kind) in enumerate([*gids, (NOTHING, "")]):
            self.file(f"{folder}/gids/{number}", value)
            if kind:
                self.file(f"{folder}/gid_attrs/types/{number}", kind)
                self.file(f"{folder}/gid_attrs/ndevs/{number}", interface)
        return folder


def connectx(root: Path) -> Tree:
    """A ConnectX of two ports in two devices: one with a link and an address, one without a cable."""
    tree = Tree(root)
    for number in (0, 1):
        pci, net = f"0000:3b:00.{number}", f"ens{number}"
        tree.interface(net, 9000, pci, "mlx5_core")
        tree.device(f"mlx5_{number}", pci, "mlx5_core", file=f"uverbs{number}")
        tree.file(f"sys/devices/{pci}/sriov_totalvfs", 8)
        tree.file(f"sys/devices/{pci}/sriov_numvfs", 4 if number == 0 else 0)
    kinds = ("IB/RoCE v1", "RoCE v2")
    both = tuple((value, kind) for value in (LINK_LOCAL, IPV4) for kind in kinds)
    tree.port("mlx5_0", interface="ens0", gids=both)
    tree.port("mlx5_1", state="1: DOWN", interface="ens1", gids=both[:2])
    return tree
