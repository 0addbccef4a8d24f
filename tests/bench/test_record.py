"""Results of benchmarks: their form, ratios, and refusal of rows in another form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.record import KEYS, record

ROW = {
    "metric": "m",
    "ours": 2.0,
    "peer": 5.0,
    "peer_name": "p",
    "unit": "us",
    "better": "lower",
    "conditions": "c",
}


def test_rows_are_appended_with_ratio_commit_and_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record("x", [ROW, {**ROW, "better": "higher"}], tmp_path)
    record("x", [{**ROW, "ratio": 7}, {**ROW, "peer": None, "peer_name": None}], tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [row["ratio"] for row in rows] == [2.5, 0.4, 7, None]
    assert set(rows[0]) == {*KEYS, "commit", "machine"}
    printed = capsys.readouterr().out
    assert "2.50x" in printed
    assert "conditions: c" in printed


@pytest.mark.parametrize("change", [{"beter": "lower"}, {"better": "best"}])
def test_other_rows_are_refused(tmp_path: Path, change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="row 'm'"):
        record("x", [{**ROW, **change}], tmp_path)


def test_refused_rows_are_shown_and_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record("x", [ROW], tmp_path, refused="others used 30% of the machine")
    assert not (tmp_path / "x.jsonl").exists()
    printed = capsys.readouterr().out
    assert "2.50x" in printed
    assert "NOT VALID, not recorded: others used 30% of the machine" in printed
