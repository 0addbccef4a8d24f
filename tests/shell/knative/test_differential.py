"""The same random statistics into Knative's own windows and scaler, and into ours: the same decisions out.

Knative's side is a Go program of our own around its packages (e2e/go/differential); it is built with the e2e stack.
There are no bursts in here: they are what we do differently (core/scaling/burst.py), and they come by another way.
"""

from __future__ import annotations

import json
import math
import subprocess
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

import pytest

from e2e import build
from kserve_ext.core.knative.collection import Collection, Metric
from kserve_ext.core.knative.decider import Decider
from kserve_ext.core.knative.sampling import Load
from kserve_ext.core.scaling.spec import ScalingSpec
from kserve_ext.core.scaling.window import Algorithm, panic_window_s

PROGRAM = build.program("decisions")
pytestmark = pytest.mark.skipif(
    not PROGRAM.exists(), reason="Knative's side is not built: `python -m e2e.build decisions` (needs Go)"
)
SECOND = 10**9
SCENARIOS, STEPS = 40, 300


class Line(NamedTuple):
    """One event, as the Go program reads it, and what it is for us."""

    sent: dict[str, Any]
    spec: ScalingSpec | None = None


class Scenario:
    """A revision's life, drawn at random: load that swells and ebbs, pods that follow or don't."""

    def __init__(self, seed: int) -> None:
        random = self._random = Random(seed)
        self.metric: Metric = random.choice(["concurrency", "rps"])
        self.algorithm: Algorithm = random.choice(["linear", "linear", "weighted-exponential"])
        self.stable_s = random.choice([6, 20, 60, 60, 120])
        self.panic_s = panic_window_s(self.stable_s, random.choice([1, 10, 10, 33.3, 100]))
        self.scraped = random.random() < 0.7
        self.delay_s = random.choice([0, 0, 5, 30])
        self.initial_ready = random.choice([0, 1, 1, 3, 12])
        self.first = self._spec()
        self.lines = self._lines()

    def _spec(self) -> ScalingSpec:
        random = self._random
        total = random.choice([1.0, 10.0, 100.0, round(random.uniform(0.1, 50), 3)])
        return ScalingSpec(
            target=max(0.01, total * random.choice([0.7, 1.0, 0.33])),
            total=total,
            target_burst_capacity=random.choice([-1, 0, 7, 200, 211]),
            stable_window_s=self.stable_s,
            panic_threshold=random.choice([1.1, 2, 2, 10]),
            max_up_rate=random.choice([1.1, 2, 10, 1000]),
            max_down_rate=random.choice([1.1, 2, 2, 10]),
            activation=random.choice([0, 0, 2, 5]),
            initial=random.choice([0, 1, 4]),
            scale_down_delay_s=self.delay_s,
            reachable=random.random() < 0.85,
        )

    def _lines(self) -> list[Line]:
        random = self._random
        windows = {
            "stableWindow": self.stable_s * SECOND,
            "panicWindow": int(self.panic_s) * SECOND,
            "scrapeTarget": "private" if self.scraped else "",
        }
        lines = [
            Line(
                {
                    "op": "new",
                    "ready": self.initial_ready,
                    "spec": self._sent(self.first),
                    "windows": windows,
                    "algorithm": self.algorithm,
                },
                self.first,
            )
        ]
        level = 0.0
        for second in range(STEPS):
            if random.random() < 0.05:
                level = random.choice([0.0, 0.0, 1.0, random.uniform(0, 300)])
            silent = level == 0.0 and random.random() < 0.5
            for _ in range(0 if silent else random.randint(0, 3)):
                at = second + round(random.uniform(-3, 1), 3)
                if at >= 0:
                    lines.append(Line(self._stat(at, level)))
            if random.random() < 0.2:
                lines.append(Line({"op": "ready", "ready": random.choice([0, 1, 2, random.randint(0, 40)])}))
            if random.random() < 0.01:
                spec = self._spec()
                lines.append(Line({"op": "spec", "spec": self._sent(spec)}, spec))
            if second % 2 == 0:
                lines.append(Line({"op": "tick", "at": float(second)}))
        return lines

    def _stat(self, at: float, level: float) -> dict[str, Any]:
        random = self._random
        concurrency = round(level * random.uniform(0.5, 1.5), random.choice([0, 3, 9]))
        return {
            "op": "stat",
            "at": at,
            "concurrency": concurrency,
            "proxied_concurrency": round(concurrency * random.choice([0, 0, 0.25]), 6),
            "requests": float(random.randint(0, 1 + int(level))),
            "proxied_requests": 0.0,
        }

    def _sent(self, spec: ScalingSpec) -> dict[str, Any]:
        """As Knative's DeciderSpec, by the names of its Go fields."""
        return {
            "MaxScaleUpRate": spec.max_up_rate,
            "MaxScaleDownRate": spec.max_down_rate,
            "ScalingMetric": self.metric,
            "TargetValue": spec.target,
            "TotalValue": spec.total,
            "TargetBurstCapacity": spec.target_burst_capacity,
            "PanicThreshold": spec.panic_threshold,
            "StableWindow": int(spec.stable_window_s * SECOND),
            "ScaleDownDelay": int(spec.scale_down_delay_s * SECOND),
            "InitialScale": spec.initial,
            "Reachable": spec.reachable,
            "ActivationScale": spec.activation,
        }


Decisions = list[tuple[int, int, bool]]


def knatives(scenario: Scenario) -> tuple[float, Decisions]:
    """Its base time, and what it decided at each tick."""
    text = "".join(json.dumps(line.sent) + "\n" for line in scenario.lines)
    done = subprocess.run([PROGRAM], input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    base, *found = map(json.loads, done.stdout.splitlines())
    return base["base"], [(d["want"], d["excess"], d["valid"]) for d in found]


def ours(scenario: Scenario, base: float) -> Decisions:
    collection = Collection(scenario.stable_s, scenario.panic_s, scenario.algorithm, scenario.scraped)
    decider = Decider(scenario.first, scenario.initial_ready, base)
    ready = scenario.initial_ready
    found: Decisions = []
    for sent, spec in scenario.lines:
        now = base + sent.get("at", 0.0)
        match sent["op"]:
            case "spec":
                assert spec is not None
                decider.spec = spec
            case "ready":
                ready = sent["ready"]
            case "stat":
                load = Load(sent["concurrency"] - sent["proxied_concurrency"], sent["requests"])
                assert collection.record(load, now)
            case "tick":
                averages = collection.averages(scenario.metric, now)
                decider.tick(averages, ready, now)
                known = averages is not None
                found.append((decider.desired, decider.excess_burst, True) if known else (0, 0, False))
    return found


@pytest.mark.parametrize("seed", range(SCENARIOS))
def test_the_same_decisions(seed: int) -> None:
    scenario = Scenario(seed)
    base, theirs = knatives(scenario)
    assert ours(scenario, base) == theirs


def test_the_scenarios_are_worth_it() -> None:
    """They have to go where decisions are hard: up and down, in and out of panic, with and without data."""
    wants: set[int] = set()
    valid: set[bool] = set()
    falls = rises = 0
    for seed in range(SCENARIOS):
        decided = ours(Scenario(seed), 1_700_000_000.0)
        wants |= {want for want, _, _ in decided}
        valid |= {known for _, _, known in decided}
        steps = [math.copysign(1, b[0] - a[0]) for a, b in pairwise(decided) if a[0] != b[0]]
        rises += steps.count(1)
        falls += steps.count(-1)
    assert len(wants) > 50
    assert valid == {True, False}
    assert min(rises, falls) > 100
