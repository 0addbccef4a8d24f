"""What a message costs the process that gets it, in microseconds of processor time: data, measured, and where.

`RPC` is one side's share of a call on a cached connection, with 16 calls under way (`make bench-rpc`); `CONNECT` one
side's share of a new connection with its hello. `KIND` is what the real cores took for one message, in the mean of a
run of the simulator under a stopwatch (`python -m bench.control --calibrate`): 3,000 starts of 600 revisions on 210
nodes, 35 functions of each kind. `schedule` and `candidate` are the line through its means with 6, 26 and 210 nodes
to look at; of views, those `anew` have other Dispatch functions than before. The cores run in Python, as the real
processes do. `room` and `report` are set by hand: they take less
than the stopwatch can tell.
"""

from __future__ import annotations

from typing import Final

MACHINE: Final = "2 cores, AMD EPYC, 23 GiB, Linux 6.18, Python 3.11"
RPC: Final = 5.0
CONNECT: Final = 160.0
VIEW_MEMBERS: Final = 315  # in the views of these figures
VIEW_SENT: Final = 5.0  # more than another message: 14 KiB, encoded once for all
VIEW_READ: Final = 56.0

KIND: Final[dict[str, float]] = {
    "ack": 2.9,
    "acknowledged": 3.9,
    "announce": 4.9,
    "claim": 10.0,  # of the nodes that change hands between two functions
    "candidate": 3.1,  # of one node that a Schedule function looks at
    "demand": 65.7,
    "demand-answer": 19.8,
    "finished": 6.9,
    "handed": 5.6,
    "grant": 42.0,
    "grant-answer": 43.2,
    "mod-node": 5.7,
    "placed": 62.5,
    "probe": 10.8,
    "probed": 5.5,
    "recall": 7.7,
    "recall-answer": 6.3,
    "report": 2.0,
    "room": 2.0,
    "schedule": 28.0,
    "schedule-call": 5.6,
    "start": 93.8,
    "started": 13.7,
    "stop": 100.0,
    "submit": 19.5,
    "tick": 15.0,  # of one revision that is looked at
    "told": 74.4,
    "update": 12.4,
    "view-cluster_mgr": 237.7,
    "view-cluster_mgr-anew": 283.3,
    "view-dispatch": 121.1,
    "view-dispatch-anew": 10966.1,
    "view-node": 63.3,
    "view-node-anew": 107.3,
    "view-schedule": 153.3,
    "view-schedule-anew": 189.4,
}
#: messages that the calibration did not meet
DEFAULT: Final = 20.0


def seconds(kind: str, *, rpc: bool = True) -> float:
    """Of one message, or one thing looked at, of that kind; `rpc` False: within one process."""
    read = VIEW_READ if kind.startswith("view-") else 0.0
    return (KIND.get(kind, DEFAULT) + read + (RPC if rpc else 0.0)) * 1e-6
