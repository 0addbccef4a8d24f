"""Rows of bench-control: in the form of the others, labelled, and with what is not there left empty."""

from __future__ import annotations

import json
from pathlib import Path

from bench.control import recorded
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
