"""What bench-kv makes of its samples: rows that say what they compare, and what was reached."""

from __future__ import annotations

import pytest

from bench import kv

MIB = 1 << 20
MEDIANS = {
    f"write {MIB}": 95.0,
    f"ib_write_bw {MIB}": 100.0,
    "send": 140.0,
    "ib_send_lat": 100.0,
    "set-up": 20.0,
}


def test_rows_compare_medians_of_the_same_run_with_their_peers() -> None:
    samples = {name: [value / 2, value, value * 2] for name, value in MEDIANS.items()}
    rows = {(row["metric"], row["peer_name"]): row for row in kv.rows(samples, 3)}
    bulk = rows["WRITE of 1024 KiB, bandwidth", "ib_write_bw"]
    assert (bulk["ours"], bulk["peer"], bulk["better"]) == (95.0, 100.0, "higher")
    assert "median of 3 interleaved rounds; largest spread 150%" in bulk["conditions"]
    alone = rows["channel set-up, without its ring", None]
    assert (alone["ours"], alone["peer"]) == (20.0, None)


@pytest.mark.parametrize(
    ("name", "value", "missed"),
    [
        ("send", 140.0, ""),
        (f"write {MIB}", 89.0, "WRITE"),
        ("send", 151.0, "message"),
        ("set-up", 51.0, "set-up"),
    ],
)
def test_what_was_missed_is_said(
    name: str, value: float, missed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kv.verdict(MEDIANS | {name: value}) == (1 if missed else 0)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MISSED")]
    assert len(lines) == (1 if missed else 0)
    assert all(missed in line for line in lines)
