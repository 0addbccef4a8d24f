"""A row of what the simulator shows: ours beside a baseline, or alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kserve_ext.sim.fleet import World


@dataclass(frozen=True)
class Row:
    """`ours` and `baseline` are figures of `unit`; the published figure is in `claim`."""

    claim: str
    metric: str
    ours: float | None
    baseline: float | None
    baseline_name: str
    unit: str
    better: Literal["lower", "higher"]
    conditions: str

    @property
    def change(self) -> float | None:
        """How much lower than the baseline, or how many times higher."""
        if self.ours is None or not self.baseline:
            return None
        return 1 - self.ours / self.baseline if self.better == "lower" else self.ours / self.baseline


def said_of(world: World, seed: int) -> str:
    start, hop = world.start_s * 1e3, world.hop_s * 1e3
    return f"simulated: {world.nodes} nodes, start {start:g} ms, hop {hop:g} ms, seed {seed}"
