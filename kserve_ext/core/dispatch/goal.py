"""How many instances one revision wants by itself: KPA's decision, the burst at arrival, the last steps to zero.

Demand comes in as shards report it, a second's concurrency is recorded, KPA decides every two seconds; what arrives
in between is seen at once. In a group tokens count beside (scaling/tokens.py). It knows nothing of starts, slots or
shards: what there is, it is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kserve_ext.core.dispatch.facts import Demand
from kserve_ext.core.facts import Revision
from kserve_ext.core.scaling import burst, scale_to_zero
from kserve_ext.core.scaling.decide import TICK_S, Decision, Observed, ScalingSpec, ScalingState, decide
from kserve_ext.core.scaling.scale_to_zero import Activity
from kserve_ext.core.scaling.tokens import TokenDemand, by_instances
from kserve_ext.core.scaling.velocity import DecodeVelocity
from kserve_ext.core.scaling.window import MetricWindows, panic_window_s


class Seen(NamedTuple):
    """What its home knows now."""

    held: int
    in_flight: int
    #: running and starting, less those meant to stop
    existing: int
    ready: int
    #: anything of it exists, or did and nobody has said that it has gone
    any: bool

    @property
    def demand(self) -> burst.Demand:
        return burst.Demand(self.held, self.in_flight)


class Goal:
    def __init__(self, revision: Revision, now: float) -> None:
        self.revision = revision
        self.spec = ScalingSpec.of(
            revision.scale, revision.concurrency, start_deadline_s=revision.command.start_timeout_s
        )
        self.windows = MetricWindows(
            self.spec.stable_window_s,
            panic_window_s(self.spec.stable_window_s, revision.scale.panic_window_percent),
            revision.scale.algorithm,
        )
        #: of a group's member: what its stage has to do, in tokens
        self.tokens = TokenDemand(revision.scale)
        self._decoding = DecodeVelocity()
        self.state = ScalingState.start(self.spec, 0, now)
        self.activity = Activity.start(self.spec, now)
        self.count = 0
        self.decision: Decision | None = None
        self.why = ""
        self._since = now
        self._sum = 0.0  # concurrency seconds or requests since the last record
        self._recorded_at = now
        self._decide_at = now + TICK_S

    def opens(self, seen: Seen, now: float, *, fresh: bool) -> None:
        """What runs is known. `fresh`: it never had an instance, so it gets its initial scale."""
        self.state = ScalingState.start(self.spec, seen.ready, now)
        if fresh and not seen.existing:
            self.count = self.spec.initial_count
        else:
            self.state.initialized = True
            self.count = self.spec.capped(max(seen.existing, self.spec.floor(True)))
            self.activity = Activity("active" if seen.existing else "inactive", now)

    # --- demand

    def demanded(self, demand: Demand) -> None:
        rps = self.revision.scale.metric == "rps"
        self._sum += demand.arrived if rps else demand.concurrency_seconds

    def decoded(self, tokens: int, occupancy: float, span_s: float) -> None:
        """One of its instances has generated these in so long, and was so full (0 to 1)."""
        self.tokens.arrived(tokens)
        self._decoding.did(tokens, occupancy, span_s)
        self.tokens.velocity = self._decoding.tokens_s

    def burst(self, seen: Seen, allowed: Callable[[int, float], int], now: float) -> None:
        """At arrival. `allowed`: how many of so many more may be started now."""
        existing = seen.existing
        want = burst.burst(self.spec, seen.demand, existing, self.state, now)
        by_tokens = min(self.tokens.burst(), seen.held + seen.in_flight)  # a prompt is computed in one place
        want = burst.latch(self.spec.capped(by_tokens), want, self.state, now)
        if want > existing:
            want = existing + allowed(want - existing, now)
        if want > existing:
            self.count = max(self.count, want)

    # --- time

    def tick(self, seen: Seen, now: float, *, decides: bool) -> None:
        """Some times a second. `decides`: it may be scaled now."""
        busy = seen.any or bool(seen.held or self.count)
        if now - self._recorded_at >= 1.0:
            if busy:
                self.windows.record(now, self._sum / (now - self._recorded_at))
                self.tokens.record(now - self._recorded_at, now)
            self._sum, self._recorded_at = 0.0, now
        if now >= self._decide_at:
            self._decide_at = max(self._decide_at + TICK_S, now)
            if decides and busy:
                self._decide(seen, now)

    def _decide(self, seen: Seen, now: float) -> None:
        averages, ready = self.windows.averages(now), seen.ready
        spec, observed = self.spec, Observed(averages.stable, averages.panic, ready)
        tokens = self.tokens.counts(seen.existing, now)
        if tokens is not None:
            spec, observed = by_instances(spec, averages, tokens, ready, self.revision.role == "prefill")
        decision = decide(spec, observed, self.state, now)
        busy = seen.held + seen.in_flight > 0
        verdict = scale_to_zero.step(
            self.spec,
            decision.desired,
            ready,
            self.state.initialized,
            self.activity,
            now,
            diverted_since=self._since,
            busy=busy,
        )
        self.decision, self.why = decision, verdict.why
        if verdict.scale is not None:
            need = burst.instances_for(self.spec, seen.demand) if busy else 0
            self.count = self.spec.capped(max(verdict.scale, min(need, seen.existing)))
