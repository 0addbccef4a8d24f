"""What a message costs the process that gets it, in microseconds of processor time: data, measured, and where.

`RPC` is one side's share of a call on a cached connection, with 16 calls under way (`make bench-rpc`); `CONNECT` one
side's share of a new connection with its hello. `KIND` is what the real cores took in a run of the simulator under a
stopwatch (`python -m bench.simulate --calibrate`), in the mean, for one message; of those in `EACH` for one item of
it. The cores run in Python, as the real processes do. Nothing here is computed from a result that it leads to.
"""

from __future__ import annotations

from typing import Final

MACHINE: Final = "2 cores, AMD EPYC, 23 GiB, Linux 6.18, Python 3.11"
RPC: Final = 5.0
CONNECT: Final = 160.0

KIND: Final[dict[str, float]] = {
    "ack": 2.0,
}

DEFAULT: Final = 20.0


def seconds(kind: str, *, rpc: bool = True) -> float:
    """Of one message of that kind; `rpc` False: within one process."""
    return (KIND.get(kind, DEFAULT) + (RPC if rpc else 0.0)) * 1e-6
