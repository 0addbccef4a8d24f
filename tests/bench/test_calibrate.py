"""Thresholds are data: what bench.calibrate writes can be read again, and what is there now has been measured."""

from __future__ import annotations

import asyncio

from bench import calibrate
from bench.calibrate import Figure
from kserve_ext.core.control import calibrated
from kserve_ext.core.control.facts import SCALED, ScaledKind

FIGURES: dict[ScaledKind, Figure] = {
    "dispatch": Figure(24_756.0, 1.55, 0.98, 0.0),
    "schedule": Figure(8_427.6, 8.0, 0.44, 0.25),
    "cluster_mgr": Figure(53_847.4, 12.2, 0.81, 0.7),
}


def test_what_is_written_is_read_again() -> None:
    found: dict[str, object] = {}
    text = calibrate.written(FIGURES, "quiet", "0123abc")
    assert text.startswith(calibrate.FILE.read_text()[:200])
    exec(compile(text, "calibrated.py", "exec"), found)
    assert found["THRESHOLDS"] == {"dispatch": 25_000.0, "schedule": 8_400.0, "cluster_mgr": 54_000.0}
    assert "44% of its core, p99 8.0 ms" in text
    assert found["COMMIT"] == "0123abc"


def test_every_kind_has_a_threshold_and_where_it_was_measured() -> None:
    assert set(calibrated.THRESHOLDS) == set(SCALED)
    assert min(calibrated.THRESHOLDS.values()) > 100.0
    assert calibrated.MACHINE
    assert calibrated.COMMIT


def test_the_highest_rate_is_found_between_one_that_is_borne_and_one_that_is_not() -> None:
    async def offered(setting: object, rate: float, ask: object) -> Figure:
        return Figure(rate, 1.0 if rate <= 1500.0 else 100.0, 0.5, 0.1)

    before = calibrate.offered, calibrate.ROUNDS
    calibrate.offered, calibrate.ROUNDS = offered, 1  # type: ignore[misc]
    try:
        best = asyncio.run(calibrate.most(None, lambda number, told: None, 250.0))  # type: ignore[arg-type]
    finally:
        calibrate.offered, calibrate.ROUNDS = before  # type: ignore[misc]
    assert 1400.0 < best.rate <= 1500.0
