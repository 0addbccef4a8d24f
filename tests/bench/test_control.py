"""Rows of bench-control: in the form of the others, labelled, and with what is not there left empty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import cores
from bench.control import recorded, section
from bench.record import record
from kserve_ext.sim.rows import Row


def test_rows_are_in_the_form_of_all_results(tmp_path: Path) -> None:
    rows = [
        Row("claim", "p99", 0.0408999999, 3.58, "central", "s", "lower", "simulated: 210 nodes"),
        Row("full clusters", "borrowed", 631, None, "", "", "lower", "simulated: 210 nodes"),
    ]
    record("control", recorded(rows), tmp_path)
    first, second = map(json.loads, (tmp_path / "control.jsonl").read_text().splitlines())
    assert first["metric"] == "claim: p99"
    assert (first["ours"], first["peer"], first["ratio"]) == (0.0409, 3.58, 87.531)
    assert (second["peer"], second["peer_name"], second["ratio"]) == (None, None, None)
    assert all(row["conditions"].startswith("simulated") for row in (first, second))


def test_a_section_is_rows_and_what_they_took() -> None:
    rows, seconds = section("connections", 0)
    assert all(row.conditions.startswith("simulated") for row in rows)
    assert seconds > 0.0


def test_decisions_are_what_nodes_have_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "ROUNDS", 1)
    for make in (cores.Ledgers, cores.Agents):
        assert cores.decisions_per_s(make, 3, 4) > 0.0
