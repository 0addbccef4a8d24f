"""Which faults come when: a schedule made from a seed. Pure; a schedule is a value that is printed and read back.

Storms of one to four faults at once alternate with calm long enough that everything must be well again before the
next: what is checked of a calm cluster then has something to say. Targets that don't exist before the run
(instances, zygotes) are chosen by a number when the fault comes.
"""

from __future__ import annotations

import json
import random
from typing import Any, NamedTuple

#: Until the cluster is up, and everything has been asked for once.
FIRST_S = 5.0
STORM_S = (4.0, 10.0)
CALM_S = 14.0
#: No storm begins later: it is over, and most of the calm after it, when the run is.
LAST_S = 20.0

KILLS = (0.1, 0.5, 2.0, 5.0)
PAUSES = (0.3, 1.5, 3.5, 6.0, 12.0)
#: What becomes of the frames that a part is sent, and how bad it may be: seconds, or a share of its connections.
FRAMES = {"resend": (0.1, 1.0, 4.0), "slow": (0.05, 0.3, 1.0), "silent": (0.3, 1.0), "lost": (0.3, 1.0)}
SHIFTS = (-3600.0, -5.0, 5.0, 3600.0, 86400.0)


class Fault(NamedTuple):
    at: float  # seconds after the beginning
    kind: (
        str  # kill | pause | clock | cut | {kill,pause}-{instance,function} | kill-zygote | late-stop; FRAMES
    )
    target: str  # id of a part, "leader", "store"; of instances and zygotes a number to choose by
    seconds: float = 0.0  # so long it is away, paused, cut off
    amount: float = (
        0.0  # of a clock: so many seconds it is shifted; of frames: as tests/chaos/frames.py has it
    )


class Schedule(NamedTuple):
    seed: int
    seconds: float
    faults: tuple[Fault, ...]
    cluster: str = "plain"  # see SHAPES in tests/chaos/plans.py

    def text(self) -> str:
        """One fault a line, to be read by people and by `--schedule`."""
        head = {"seed": self.seed, "seconds": self.seconds, "cluster": self.cluster}
        return "\n".join([json.dumps(head), *(json.dumps(f._asdict()) for f in self.faults)]) + "\n"


def read(text: str) -> Schedule:
    head, *lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    faults = tuple(Fault(**line) for line in lines)
    return Schedule(int(head["seed"]), float(head["seconds"]), faults, head.get("cluster", "plain"))


def make(
    seed: int, seconds: float, targets: list[str], *, cut: bool = False, cluster: str = "plain"
) -> Schedule:
    """`targets`: as the cluster has them, e.g. "dispatch-1". `cut`: nodes can be cut off from the network."""
    rng = random.Random(seed)
    faults: list[Fault] = []
    at = FIRST_S
    while at + LAST_S <= seconds:
        storm = rng.uniform(*STORM_S)
        for _ in range(rng.choice((1, 1, 2, 2, 3, 4))):
            faults.append(_one(rng, round(at + rng.uniform(0, storm / 2), 2), targets, cut))
        at = max([at + storm, *(f.at + f.seconds for f in faults)]) + CALM_S
    return Schedule(seed, seconds, tuple(sorted(faults)), cluster)


def _one(rng: random.Random, at: float, targets: list[str], cut: bool) -> Fault:
    parts = [t for t in targets if t not in ("leader", "store", "function")]
    nodes = [p for p in parts if p.startswith("node")]
    kinds: dict[str, int] = {"kill": 5, "pause": 4, "clock": 1, "kill-instance": 2, "pause-instance": 1}
    kinds["kill-zygote"] = kinds["late-stop"] = 1
    kinds |= dict.fromkeys(FRAMES, 2)
    if "leader" in targets:
        kinds |= {"leader": 5, "store": 5}
    if "function" in targets:
        kinds |= {"kill-function": 4, "pause-function": 3}
    if cut:
        kinds["cut"] = 3
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    match kind:
        case "leader":
            return Fault(at, rng.choice(("kill", "pause")), "leader", rng.choice(PAUSES[2:]))
        case "store":
            how = rng.choice(("kill", "pause", "flush"))
            return Fault(at, how, "store", 0.0 if how == "flush" else rng.choice(PAUSES))
        case "kill":
            return Fault(at, kind, rng.choice(parts), rng.choice(KILLS))
        case "pause":
            return Fault(at, kind, rng.choice(parts), rng.choice(PAUSES))
        case "clock":
            return Fault(at, kind, rng.choice(parts), amount=rng.choice(SHIFTS))
        case "resend" | "slow" | "silent" | "lost":
            return Fault(at, kind, rng.choice(parts), rng.choice(PAUSES[1:]), rng.choice(FRAMES[kind]))
        case "cut":
            return Fault(at, kind, rng.choice(nodes), rng.choice(PAUSES))
        case _:
            which = str(rng.randrange(1000))
            return Fault(at, kind, which, rng.choice(PAUSES[:4]) if kind.startswith("pause") else 0.0)


def facts_of(fault: Fault) -> dict[str, Any]:
    return {"kind": fault.kind, "target": fault.target, "seconds": fault.seconds, "amount": fault.amount}
