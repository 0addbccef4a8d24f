"""Golden scripts of hand-overs: tests/golden/handover/*.txt. Commands, beside those of tests/support/scripts.py:

    cluster NODES FUNCTION...       who is there; every node knows its Schedule function already
    join | drain | leave | kill | pause | resume FUNCTION
    start FUNCTION NODE ID          under way from there: its answer is not here yet
    place                           every function asks each node that it thinks it has for a start
    time SECONDS                    pass
    state                           which function places where, under which term, and what is free there

What happened meanwhile is the output. `make golden` rewrites it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from tests.core.schedule.handover_world import NEEDS, World
from tests.support.scripts import played

SCRIPTS = Path(__file__).resolve().parents[2] / "golden" / "handover"


class Golden(Protocol):
    def __call__(self, name: str, text: str) -> None: ...


class Script:
    def __init__(self) -> None:
        self.world: World

    def run(self, command: str) -> str:
        verb, *args = command.split()
        if verb != "cluster":
            self.world.log.clear()
        said = getattr(self, f"do_{verb}")(*args) or self.world.log
        return "".join(f"{line}\n" for line in said)

    def do_cluster(self, nodes: str, *functions: str) -> list[str]:
        self.world = World(int(nodes), [FunctionID(f) for f in functions])
        self.world.run(1.0)
        for node in self.world.nodes.values():
            for function in self.world.functions.values():
                function.heard(node.status(), self.world.now)
        self.do_place()
        return self.do_state()

    def do_join(self, function: str) -> None:
        self.world.join(FunctionID(function))
        self.world.run(0.05)

    def do_drain(self, function: str) -> None:
        self.world.drain(FunctionID(function))
        self.world.run(0.05)

    def do_leave(self, function: str) -> None:
        self.world.leave(FunctionID(function))
        self.world.run(0.05)

    def do_kill(self, function: str) -> None:
        del self.world.functions[FunctionID(function)]
        self.do_leave(function)

    def do_pause(self, function: str) -> None:
        self.world.paused.add(FunctionID(function))

    def do_resume(self, function: str) -> None:
        """It asks its nodes for starts before it hears of anything."""
        self.world.paused.discard(FunctionID(function))
        self.world.place(FunctionID(function))
        self.world.run(0.05)

    def do_start(self, function: str, node: str, instance: str) -> None:
        self.world.functions[FunctionID(function)].partition.sent(InstanceID(instance), NodeID(node), NEEDS)

    def do_place(self) -> None:
        for function in self.world.functions:
            self.world.place(function)
        self.world.run(0.01)

    def do_time(self, seconds: str) -> None:
        self.world.run(float(seconds))

    def do_state(self) -> list[str]:
        lines = []
        for name, function in self.world.functions.items():
            for node, term in sorted(function.terms.items()):
                known = function.partition.candidate(node)
                free = "nothing known" if known is None else f"{known.free.cpu_milli}m free"
                lines.append(f"{name} places on {node} since epoch {term}: {free}")
        return lines


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.txt")), ids=lambda p: p.stem)
def test_script(script: Path, golden: Golden) -> None:
    golden(f"handover/{script.name}", played(script, Script().run))


def test_there_are_scripts() -> None:
    assert {p.stem for p in SCRIPTS.glob("*.txt")} >= {"join", "paused"}
