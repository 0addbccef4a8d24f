"""Histories as values: the lines that all processes of a run have written, in the order in which they happened."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    t: float  # CLOCK_MONOTONIC, one for all processes of a machine
    by: str  # "node-0", "dispatch-1", "instance", "runner", ...
    pid: int
    what: str
    facts: dict[str, Any]

    def __getitem__(self, fact: str) -> Any:
        return self.facts[fact]

    def __str__(self) -> str:
        facts = " ".join(f"{k}={_short(v)}" for k, v in self.facts.items())
        return f"{self.t:.3f} {self.by}({self.pid}) {self.what} {facts}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 160 else f"{text[:160]}…"


def event(line: str | bytes) -> Event:
    facts = json.loads(line)
    return Event(float(facts.pop("t")), facts.pop("by"), int(facts.pop("pid")), facts.pop("what"), facts)


def load(folder: Path, of: str = "*") -> list[Event]:
    """Every event of a run, or of the processes so named. A line that a killed process left torn is left out."""
    found = []
    for file in sorted(folder.glob(f"{of}.jsonl")):
        for line in file.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                found.append(event(line))
    return in_order(found)


def in_order(events: Iterable[Event]) -> list[Event]:
    return sorted(events, key=lambda e: e.t)
