"""Which revisions of a service exist and which one has the traffic.

A changed spec makes a new revision ({isvc}-predictor-{number:05d}, as Knative names them). It takes the traffic
when it is ready; the one before keeps it until then, and is deleted a moment after, which drains it. Where
nothing runs and nothing is to run before the first request, the traffic moves at once. Pure: takes `now`, returns
what to write; matches Knative's "latest ready revision gets 100 %".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final, NamedTuple

from kserve_ext.api.kserve.render import revision_name
from kserve_ext.core.facts import Revision
from kserve_ext.core.ids import RevisionKey

#: How long the old revision stays after the route has moved: every shard has seen the new route by then.
RETIRE_S: Final = 2.0
#: A new revision at rest for so long had its initial instances and went back to zero unseen.
AT_REST_S: Final = 90.0


class Observed(NamedTuple):
    """What the home says of one revision (store key status/namespace/name)."""

    desired: int = 0
    ready: int = 0
    starting: int = 0
    failed: int = 0
    reason: str = ""
    permanent: bool = False
    phase: str = ""
    held: int = 0
    at: float = 0.0
    short: str = ""  # it serves, with fewer instances than it wants: why

    @property
    def broken(self) -> bool:
        """It can't serve, and never will."""
        return self.permanent and not self.ready

    @property
    def idle(self) -> bool:
        return not (self.desired or self.ready or self.starting or self.held)


class Rollout(NamedTuple):
    """Durable with the object. `last` never goes down, also over deletion of the service."""

    last: int = 0
    latest: RevisionKey | None = None
    fingerprint: str = ""
    serving: RevisionKey | None = None
    retiring: tuple[tuple[RevisionKey, float], ...] = ()
    needed: int = 0  # ready instances of the latest one before it takes the traffic
    since: float = 0.0  # when the latest one was made
    latest_min: int = 0  # min-scale of the latest one
    serving_min: int = 0  # min-scale of the one that has the traffic, which may be an older one
    ready: RevisionKey | None = None  # the last one that had the traffic and was ready

    @property
    def revisions(self) -> tuple[RevisionKey, ...]:
        """All that exist, oldest first."""
        kept = [key for key, _ in self.retiring]
        kept += [key for key in (self.serving, self.latest) if key]
        return tuple(dict.fromkeys(kept))


class Step(NamedTuple):
    """What to write: `put` before the route, `delete` after it. `again_at` = look again then, 0 = on news only."""

    rollout: Rollout
    put: Revision | None = None
    delete: tuple[RevisionKey, ...] = ()
    again_at: float = 0.0


def fingerprint(wanted: Revision) -> str:
    """Changes with everything that makes a revision another one, and with nothing else."""
    plain = wanted._replace(key=RevisionKey(""), generation=0, created_at=0.0)
    return hashlib.sha256(repr(plain).encode()).hexdigest()[:16]


def stop(rollout: Rollout) -> Step:
    """The service is stopped or deleted: everything drains, the numbers go on."""
    return Step(Rollout(last=rollout.last), delete=rollout.revisions)


def restored(rollout: Rollout, now: float) -> Rollout:
    """As an earlier process has stored it; a time to come was said by a clock that has been set back since."""
    return rollout._replace(
        since=min(rollout.since, now),
        retiring=tuple((key, min(since, now)) for key, since in rollout.retiring),
    )


def step(
    rollout: Rollout, wanted: Revision | None, observed: Mapping[RevisionKey, Observed], now: float
) -> Step:
    """One look at a service. `wanted` is the rendered revision; None = the spec is invalid, so nothing is new."""
    put: Revision | None = None
    delete: list[RevisionKey] = []
    if wanted is not None and fingerprint(wanted) != rollout.fingerprint:
        if rollout.latest and rollout.latest != rollout.serving:
            delete.append(rollout.latest)  # never had traffic: superseded
        put, rollout = _create(rollout, wanted, observed, now)
    if rollout.latest and rollout.latest != rollout.serving and _may_take_over(rollout, observed, now):
        retiring = rollout.retiring
        if rollout.serving:
            retiring = (*retiring, (rollout.serving, now))
        rollout = rollout._replace(serving=rollout.latest, serving_min=rollout.latest_min, retiring=retiring)
    delete += [key for key, since in rollout.retiring if now - since >= RETIRE_S]
    rollout = rollout._replace(
        retiring=tuple((key, since) for key, since in rollout.retiring if now - since < RETIRE_S)
    )
    if _is_ready(rollout, observed, now):
        rollout = rollout._replace(ready=rollout.serving)
    elif rollout.ready not in rollout.revisions:
        rollout = rollout._replace(ready=None)
    times = [since + RETIRE_S for _, since in rollout.retiring]
    if rollout.latest != rollout.serving:
        times.append(max(now + 1.0, rollout.since + AT_REST_S))
    elif rollout.ready != rollout.serving and now < rollout.since + AT_REST_S:
        times.append(rollout.since + AT_REST_S)
    return Step(rollout, put, tuple(delete), min(times, default=0.0))


def _create(
    rollout: Rollout, wanted: Revision, observed: Mapping[RevisionKey, Observed], now: float
) -> tuple[Revision, Rollout]:
    number = rollout.last + 1
    namespace, _, service = wanted.service.partition("/")
    key = RevisionKey(f"{namespace}/{revision_name(service, number)}")
    scale = wanted.scale
    before = observed.get(rollout.serving, Observed()) if rollout.serving else Observed()
    if not before.idle and not before.broken and not scale.initial:
        scale = scale._replace(initial=1)  # there is traffic: the new one has to be ready for it
    needed = max(scale.initial, scale.min)
    if scale.max:
        needed = min(needed, scale.max)
    made = wanted._replace(key=key, generation=number, created_at=now, scale=scale)
    after = rollout._replace(
        last=number,
        latest=key,
        fingerprint=fingerprint(wanted),
        serving=rollout.serving or key,  # the first one takes the traffic at once: requests are held for it
        needed=needed,
        since=now,
        latest_min=scale.min,
        serving_min=rollout.serving_min if rollout.serving else scale.min,
    )
    return made, after


def _may_take_over(rollout: Rollout, observed: Mapping[RevisionKey, Observed], now: float) -> bool:
    assert rollout.latest is not None
    if rollout.needed == 0:
        return True
    if rollout.serving and observed.get(rollout.serving, Observed()).broken:
        return True  # nothing that works is given up
    latest = observed.get(rollout.latest)
    if latest is None:
        return False
    if latest.ready >= rollout.needed:
        return True
    return _at_rest(rollout, latest, now)


def _at_rest(rollout: Rollout, latest: Observed, now: float) -> bool:
    return latest.idle and not latest.reason and now - rollout.since >= AT_REST_S


def _is_ready(rollout: Rollout, observed: Mapping[RevisionKey, Observed], now: float) -> bool:
    """Whether the one that has the traffic is ready, as Knative counts it: one that needs no instance is."""
    if rollout.serving is None:
        return False
    serving = observed.get(rollout.serving)
    if rollout.serving != rollout.latest:
        return serving is not None and serving.ready > 0
    if rollout.needed == 0:
        return serving is None or bool(serving.ready) or not serving.reason
    return serving is not None and (serving.ready >= rollout.needed or _at_rest(rollout, serving, now))
