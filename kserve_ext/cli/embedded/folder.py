"""The data folder of an embedded cluster, as the command sees it: what runs there, and since when.

DIR/cluster.json says what the cluster is, DIR/run/ID.json which process is which part, DIR/log/ID.log what it
printed. A pid counts only together with the start time of its process: a reused pid is never mistaken for ours.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import click

from kserve_ext.cli.failure import Failure
from kserve_ext.rpc.process import start_ticks, write_atomically

Document = dict[str, Any]


def default_data() -> Path:
    """${GALAXY_HOME:-~/.galaxy}/default."""
    home = os.environ.get("GALAXY_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".galaxy") / "default"


class Running(NamedTuple):
    """One part that is alive."""

    id: str
    kind: str
    pid: int


class Folder:
    """Reads and writes the files; starts and stops nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.run = self.root / "run"
        self.log = self.root / "log"
        self.key = self.root / "cluster.key"
        self.lock = self.root / "supervisor.lock"
        self._warned = False

    def cluster(self) -> Document:
        """cluster.json, {} when there is none."""
        try:
            found = json.loads((self.root / "cluster.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_cluster(self, facts: Document) -> None:
        write_atomically(self.root / "cluster.json", json.dumps(facts, indent=1) + "\n")

    def supervisor(self) -> int:
        """Its pid, 0 when it does not run."""
        facts = self.cluster().get("supervisor") or {}
        return alive(facts)

    def run_files(self) -> dict[str, Document]:
        """Run files by part id, of living and dead ones."""
        found = {}
        for path in sorted(self.run.glob("*.json")):
            try:
                facts = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            if isinstance(facts, dict) and "id" in facts:
                found[str(facts["id"])] = facts
        return found

    def living(self) -> list[Running]:
        return [
            Running(name, str(facts.get("kind", "")), alive(facts))
            for name, facts in self.run_files().items()
            if alive(facts)
        ]

    def runs(self) -> bool:
        """Whether there is a cluster of which something lives."""
        return bool(self.cluster()) and bool(self.supervisor() or self.living())

    def required(self) -> Document:
        """cluster.json of a cluster that runs, with a warning when nothing restarts its parts; Failure otherwise."""
        facts = self.cluster()
        if not facts:
            raise Failure(
                "there is no cluster here",
                f"{self.root} has no cluster.json",
                f"start one: galaxy up --data {self.root}",
            )
        if not self.supervisor():
            if not self.living():
                raise Failure("the cluster does not run", "it was stopped", f"galaxy up --data {self.root}")
            if not self._warned:
                self._warned = True
                text = "its supervisor is gone: it serves, but a part that dies is not restarted"
                click.echo(f"warning: {text}\n  do: galaxy up --data {self.root}", err=True)
        return facts


def alive(facts: Document) -> int:
    """The pid that the file names, 0 when that process is gone."""
    pid, started = int(facts.get("pid") or 0), int(facts.get("started") or 0)
    return pid if pid and runs(pid, started) else 0


def runs(pid: int, started: int) -> bool:
    """Whether this very process runs; one that has ended and was not waited for does not."""
    if not started or start_ticks(pid) != started:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
