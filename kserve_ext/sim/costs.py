"""What a message costs the process that gets it, in microseconds of processor time: data, measured, and where.

`RPC` is one side's share of a call on a cached connection, with 16 calls under way (`make bench-rpc`); `CONNECT` one
side's share of a new connection with its hello. `KIND` is what the real cores took for one message, in the mean of a
run of the simulator under a stopwatch (`python -m bench.control --calibrate`): 3,000 starts of 600 revisions on 210
nodes, 35 functions of each kind; the least mean of three runs, on a machine that had other work as well. `schedule`
does not grow with the nodes to look at: their order is kept. `told-whole` is all that a node runs of a revision, said
again. Of views, those `anew` have other Dispatch functions than before. The cores run in Python, as the real
processes do. `room` and `report` are set by hand: they take less than the stopwatch can tell.
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
    "ack": 6.9,
    "acknowledged": 5.2,
    "announce": 6.1,
    "candidate": 3.1,  # of one node that is looked at for those who wait for room; not measured anew
    "claim": 12.0,  # of the nodes that change hands between two functions
    "demand": 48.3,
    "demand-answer": 14.8,
    "finished": 7.2,
    "handed": 6.5,
    "grant": 13.6,
    "grant-answer": 34.5,
    "mod-node": 6.9,
    "node-recall": 9.7,  # by who becomes the owner of a node; as a probe
    "node-said": 3.1,
    "placed": 23.4,
    "probe": 9.7,
    "probed": 3.1,
    "recall": 7.3,
    "recall-answer": 6.9,
    "report": 2.0,
    "room": 2.0,
    "schedule": 40.9,
    "schedule-call": 6.6,
    "start": 55.2,
    "started": 19.8,
    "stop": 47.3,
    "submit": 18.1,
    "tick": 23.1,  # of one revision that is looked at
    "told": 57.5,
    "told-whole": 15.4,
    "update": 11.5,
    "view-cluster_mgr": 244.1,
    "view-cluster_mgr-anew": 229.1,
    "view-dispatch": 150.1,
    "view-dispatch-anew": 10780.3,
    "view-node": 65.0,
    "view-node-anew": 82.8,
    "view-schedule": 157.4,
    "view-schedule-anew": 144.1,
}
#: messages that the calibration did not meet
DEFAULT: Final = 20.0


def seconds(kind: str, *, rpc: bool = True) -> float:
    """Of one message, or one thing looked at, of that kind; `rpc` False: within one process."""
    read = VIEW_READ if kind.startswith("view-") else 0.0
    return (KIND.get(kind, DEFAULT) + read + (RPC if rpc else 0.0)) * 1e-6
