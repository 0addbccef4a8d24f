"""Judges a run by its history: every invariant of DESIGN 4 that processes can break. Pure; knows no product code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tests.chaos.checks import bounds, capacity, epochs, known, objects, parts, requests, store
from tests.chaos.digest import Digest, Limits, Violation
from tests.chaos.history import Event

CHECKS = (parts, capacity, requests, known, bounds, store, epochs, objects)


def check(events: Sequence[Event], limits: Limits = Limits()) -> list[Violation]:  # noqa: B008
    """What was broken, in order of time; [] of a run in which all was well."""
    digest = Digest(events, limits)
    found = [violation for module in CHECKS for violation in module.check(digest)]
    return sorted(found, key=lambda violation: violation.t)


def text(violation: Violation, began: float = 0.0) -> str:
    """For a person: what, when (seconds of the run), and the events that show it."""
    lines = [f"{violation.invariant}: {violation.t - began:.2f} s: {violation.text}"]
    lines += [f"    {replace(e, t=e.t - began)}" for e in violation.evidence[-40:]]
    return "\n".join(lines)
