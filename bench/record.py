"""Results of benchmarks: a table for people, and one JSON line per row in bench/results/NAME.jsonl.

A row compares ours with one peer, measured in the same run; ratio says how many times better ours is. Rows with
`projected` or `simulated` in their conditions are figures of that kind, and the table shows their conditions.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEYS = ("metric", "ours", "peer", "peer_name", "unit", "better", "ratio", "conditions")


def record(
    name: str,
    rows: Sequence[dict[str, Any]],
    results: Path = ROOT / "bench" / "results",
    refused: str = "",
) -> None:
    """Prints the rows and appends them to results/NAME.jsonl with the commit and the machine.

    `refused`: why they are no valid result (see quiet.py); then they are only printed.
    """
    if not rows:
        print(f"{name}: nothing was measured, nothing is recorded")
        return
    full = [_complete(row) for row in rows]
    _print(full)
    if refused:
        print(f"{name}: NOT VALID, not recorded: {refused}")
        return
    results.mkdir(parents=True, exist_ok=True)
    extra = {"commit": commit(), "machine": machine()}
    with (results / f"{name}.jsonl").open("a") as file:
        for row in full:
            file.write(json.dumps({**row, **extra}) + "\n")


def _complete(row: dict[str, Any]) -> dict[str, Any]:
    unknown = set(row) - set(KEYS)
    if unknown:
        raise ValueError(
            f"row {row.get('metric')!r}: unknown keys {sorted(unknown)}; known are {', '.join(KEYS)}"
        )
    ours, peer, better = row.get("ours"), row.get("peer"), row["better"]
    if better not in ("lower", "higher"):
        raise ValueError(f"row {row['metric']!r}: better is lower or higher, not {better!r}")
    ratio = row.get("ratio")
    if ratio is None and ours and peer:
        ratio = round(peer / ours if better == "lower" else ours / peer, 3)
    return {key: {**row, "ratio": ratio}.get(key) for key in KEYS}


def _print(rows: list[dict[str, Any]]) -> None:
    cells = [("metric", "ours", "peer", "unit", "better", "ratio", "peer is")]
    cells += [
        (
            str(row["metric"]),
            _number(row["ours"]),
            _number(row["peer"]),
            str(row["unit"]),
            str(row["better"]),
            "-" if row["ratio"] is None else f"{row['ratio']:.2f}x",
            str(row["peer_name"] or "-"),
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for conditions in dict.fromkeys(str(row["conditions"]) for row in rows if row["conditions"]):
        print(f"conditions: {conditions}")


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def commit() -> str:
    """The commit measured; "+" when the tree has changes. BENCH_COMMIT says it for a copy without its repository."""
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("BENCH_COMMIT", "unknown")
    return head.stdout.strip()


def machine() -> str:
    """Cores, processor, memory and kernel; no names."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    memory = next(
        (int(line.split()[1]) >> 20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0
    )
    return f"{os.cpu_count()} cores, {model}, {memory} GiB, Linux {platform.release()}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
