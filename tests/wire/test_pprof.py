"""Profiles as the tool reads them that they are written for; and that every string is written once."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

import pytest

from kserve_ext.wire.pprof import Kind, Place, Profile, Sample, encode

INNER = Place("inner", "/app/a.py", 12, 10)
OUTER = Place("outer", "/app/a.py", 34, 30)
PROFILE = Profile(
    (Kind("samples", "count"), Kind("cpu", "nanoseconds")),
    [
        Sample((INNER, OUTER), (3, 30_000_000), {"thread": "MainThread"}),
        Sample((OUTER,), (1, 10_000_000)),
    ],
    at_ns=1_700_000_000 * 10**9,
    duration_ns=10**9,
    period=10_000_000,
    comment="sampled",
)


def test_strings_are_written_once() -> None:
    encoded = encode(PROFILE)
    for word in (b"inner", b"outer", b"/app/a.py", b"MainThread", b"nanoseconds", b"sampled"):
        assert encoded.count(word) == 1


@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go's pprof")
def test_gos_pprof_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "cpu.pb.gz"
    file.write_bytes(gzip.compress(encode(PROFILE)))
    top = subprocess.run(
        ["go", "tool", "pprof", "-top", "-cum", file], capture_output=True, text=True, check=True
    ).stdout
    assert "Type: cpu" in top
    assert "Duration: 1s" in top
    rows = {line.split()[-1]: line.split() for line in top.splitlines() if line.endswith(("inner", "outer"))}
    assert rows["inner"][0] == rows["inner"][3] == "30ms"
    assert rows["outer"][0] == "10ms"
    assert rows["outer"][3] == "40ms"
    raw = subprocess.run(
        ["go", "tool", "pprof", "-raw", file], capture_output=True, text=True, check=True
    ).stdout
    assert "thread:[MainThread]" in raw
    assert "a.py:34:0 s=30" in raw
