"""What the tests know of the machine that they run in: its devices, links, counters, and what the kernel holds."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
from pathlib import Path

from runtimes.transport.verbs.choice import Wanted

_HELD = ("pd", "cq", "qp", "mr")
_TCP_BYTES_SENT = 200  # offset of tcpi_bytes_sent in struct tcp_info


def inside() -> bool:
    return "GALAXY_RDMA_VM" in os.environ


class Nics:
    near, far = "rxe1", "rxe2"

    @property
    def at_near(self) -> Wanted:
        return Wanted((self.near,))

    @property
    def at_far(self) -> Wanted:
        return Wanted((self.far,))

    @staticmethod
    def bytes_sent(device: str) -> int:
        """By the interface below the device."""
        interface = {"rxe0": "rd0", "rxe1": "rd1", "rxe2": "rd2"}[device]
        return int(Path(f"/sys/class/net/{interface}/statistics/tx_bytes").read_text())

    @staticmethod
    def packets_sent(device: str) -> int:
        return int(Path(f"/sys/class/infiniband/{device}/ports/1/hw_counters/sent_pkts").read_text())

    @staticmethod
    def link_down() -> None:
        subprocess.run(["ip", "link", "set", "rd1", "down"], check=True)

    @staticmethod
    def link_up() -> None:
        subprocess.run([f"{os.environ['GALAXY_RDMA_VM']}/links-up"], check=True)

    @staticmethod
    def lose_packets(percent: int) -> None:
        for end in ("rd1", "rd2"):
            words = ["tc", "qdisc", "replace", "dev", end, "root", "netem", "loss", f"{percent}%"]
            subprocess.run(words, check=True)

    @staticmethod
    def lose_none() -> None:
        for end in ("rd1", "rd2"):
            words = ["tc", "qdisc", "del", "dev", end, "root"]
            subprocess.run(words, check=False, stderr=subprocess.DEVNULL)


def resources() -> dict[str, dict[str, int]]:
    """What the kernel holds of each device, by kind."""
    if not inside():
        return {}
    text = subprocess.run(
        ["rdma", "-j", "resource", "show"], check=True, capture_output=True, text=True
    ).stdout
    return {device["ifname"]: {kind: device[kind] for kind in _HELD} for device in json.loads(text)}


def tcp_bytes_sent(connection: socket.socket) -> int:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    (sent,) = struct.unpack_from("=Q", info, _TCP_BYTES_SENT)
    return int(sent)
