"""Ports that are written down before anybody listens there, and kept while their part is started again.

They lie below those that the kernel gives away by itself: a port of those could be the source of somebody's
connection just while its part is away, or loads.
"""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

HOST = "127.0.0.1"
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_BEFORE = 32768  # where this machine does not say
_MANY = 16384


def free_ports(count: int) -> list[int]:
    """So many different ones that nobody has."""
    first = int(RANGE.read_text().split()[0]) if RANGE.exists() else _BEFORE
    low = max(1024, first - _MANY)
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.sample(range(low, max(first, low + _MANY)), _MANY):
            sock = held.enter_context(socket.socket())
            try:
                sock.bind((HOST, port))
            except OSError:
                sock.close()
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise OSError("no port is free")


def free_port() -> int:
    return free_ports(1)[0]
