"""Golden scripts of full clusters: tests/golden/schedule/*.txt, each a story in commands with what came of them.

A script is blocks of a command, a line of four dashes, and its output; `#` lines are for readers. Commands:

    cluster PARTITION=CPU,CPU...            nodes by their thousandths of a CPU
    want NAMESPACE/NAME CPU COUNT [priority=] [least=] [preempts]
    gang NAMESPACE/NAME CPU CPU... [priority=] [preempts]
    less NAMESPACE/NAME COUNT               so many are wanted from now on; the others end
    time SECONDS
    state                                   what runs, and the line in its order

The output is what happened meanwhile. `make golden` rewrites it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from kserve_ext.core.facts import Resources
from tests.core.schedule.full_cluster import FullCluster
from tests.support.scripts import played

SCRIPTS = Path(__file__).resolve().parents[2] / "golden" / "schedule"


class Golden(Protocol):
    def __call__(self, name: str, text: str) -> None: ...


class Script:
    cluster: FullCluster

    def run(self, command: str) -> str:
        verb, *args = command.split()
        plain = [a for a in args if "=" not in a or verb == "cluster"]
        options: dict[str, Any] = {
            k: int(v) for k, _, v in (a.partition("=") for a in args if a not in plain)
        }
        if "preempts" in plain:
            plain.remove("preempts")
            options["preempts"] = True
        said = getattr(self, f"do_{verb}")(*plain, **options)
        if said is None:
            said = "\n".join(self.cluster.log)
            self.cluster.log.clear()
        return f"{said}\n" if said else ""

    def do_cluster(self, *partitions: str) -> str:
        sizes: dict[str, Sequence[Resources]] = {}
        for text in partitions:
            name, _, amounts = text.partition("=")
            sizes[name] = [Resources(int(amount), 64_000) for amount in amounts.split(",")]
        self.cluster = FullCluster(sizes)
        return ""

    def do_want(self, name: str, cpu: str, count: str, **options: Any) -> None:
        self.cluster.want(name, int(cpu), int(count), **options)

    def do_gang(self, name: str, *amounts: str, **options: Any) -> None:
        self.cluster.want(name, 0, gang=[int(amount) for amount in amounts], **options)

    def do_less(self, name: str, count: str) -> None:
        self.cluster.homes[name].wanted = int(count)
        self.cluster.end(name, self.cluster.count(name) - int(count))

    def do_time(self, seconds: str) -> None:
        self.cluster.run(float(seconds))

    def do_state(self) -> str:
        lines = []
        for node in self.cluster.nodes.values():
            runs: dict[str, int] = {}
            for of, _ in node.running.values():
                runs[of.key] = runs.get(of.key, 0) + 1
            said = ", ".join(f"{n} of {key}" for key, n in sorted(runs.items())) or "nothing"
            lines.append(f"{node.name}: {said}; {node.free.cpu_milli}m free")
        for name, machine in self.cluster.machines.items():
            for waiter in machine.line.describe(self.cluster.now):
                kept = f", room kept on {' '.join(waiter['kept_on'])}" if waiter["kept_on"] else ""  # type: ignore[arg-type]
                lines.append(
                    f"{name}: {waiter['waiter']} waits for {waiter['instances']}, priority {waiter['priority']}, "
                    f"share {waiter['share']}{kept}"
                )
        return "\n".join(lines)


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.txt")), ids=lambda p: p.stem)
def test_script(script: Path, golden: Golden) -> None:
    golden(f"schedule/{script.name}", played(script, Script().run))


def test_there_are_scripts() -> None:
    assert {p.stem for p in SCRIPTS.glob("*.txt")} >= {"full"}
