"""Ports that a cluster keeps: different, free, and none that the kernel gives away."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kserve_ext.rpc import ports


def test_they_differ_are_free_and_lie_below_the_kernels() -> None:
    found = ports.free_ports(50)
    assert len(set(found)) == 50
    first = int(ports.RANGE.read_text().split()[0]) if ports.RANGE.exists() else 32768
    assert max(found) < max(first, 1024 + 16384)
    assert min(found) >= 1024


def test_those_that_somebody_has_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = ports.free_ports(2)
    monkeypatch.setattr("random.sample", lambda population, count: [taken, free])
    with socket.socket() as other:
        other.bind((ports.HOST, taken))
        assert ports.free_port() == free
        with pytest.raises(OSError, match="no port is free"):
            ports.free_ports(2)
