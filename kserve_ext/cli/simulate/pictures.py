"""The plots of `galaxy simulate --plots FOLDER`: latency over load, timelines of the trace, balance of partitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from kserve_ext.core.ids import FunctionID, NodeID
from kserve_ext.core.partitions import divide, loads
from kserve_ext.sim.claims import burst
from kserve_ext.sim.fleet import World
from kserve_ext.sim.plots import Axis, Line, plot
from kserve_ext.sim.runs import Result
from kserve_ext.sim.workloads import EMULATED

RATES: Final = (100.0, 500.0, 2000.0, 5000.0, 20_000.0)
SECONDS: Final = 0.2
LEAST, MOST = 60, 2000  # cold starts of a point
SHARES: Final = (("p50", "p50"), ("p99", "p99"), ("p999", "p99.9"))


def draw(
    folder: Path, systems: Sequence[str], results: Sequence[Result], world: World, seed: int
) -> list[Path]:
    """Writes them; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    emulated = replace(EMULATED, nodes=world.nodes, hop_s=world.hop_s, seed=seed)
    points = {name: [_point(name, rate, emulated, seed) for rate in RATES] for name in systems}
    written = []
    for field, label in SHARES:
        lines = [
            Line(name, tuple((r.per_second, getattr(r, field)) for r in found))
            for name, found in points.items()
        ]
        x, y = Axis("instances ready per second", log=True), Axis(f"{label} scheduling latency, s", log=True)
        written.append(_write(folder, f"latency-{label}.svg", plot(f"Cold starts: {label}", x, y, lines)))
    waiting = [Line(r.system, tuple((s.at, float(s.waiting)) for s in r.timeline)) for r in results]
    arrived = Line("arrivals/s", tuple((s.at, float(s.arrived)) for s in results[0].timeline))
    x = Axis("seconds of the trace")
    written.append(
        _write(folder, "waiting.svg", plot("Requests that wait", x, Axis("requests"), [arrived, *waiting]))
    )
    instances = [Line(r.system, tuple((s.at, float(s.instances)) for s in r.timeline)) for r in results]
    written.append(_write(folder, "instances.svg", plot("Instances", x, Axis("instances"), instances)))
    written.append(_write(folder, "partitions.svg", _partitions(world.nodes)))
    return written


def _point(name: str, rate: float, world: World, seed: int) -> Result:
    return burst(name, rate, max(LEAST, min(MOST, round(rate * SECONDS))), world, seed)


def _partitions(nodes: int) -> str:
    """How many nodes each Schedule function has, the largest first."""
    lines = []
    for count in (5, 15, 35):
        functions = [FunctionID(f"schedule-{k}") for k in range(count)]
        owned = divide((NodeID(f"node-{n:04d}") for n in range(nodes)), functions)
        sizes = sorted(loads(owned, functions), reverse=True)
        lines.append(Line(f"{count} functions", tuple((float(k + 1), float(n)) for k, n in enumerate(sizes))))
    return plot("Partitions", Axis("Schedule function, by size"), Axis("nodes"), lines)


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path
