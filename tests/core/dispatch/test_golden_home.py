"""Golden scripts of homes and shards: tests/golden/*.txt, each a story in commands with what came of them.

A script is blocks of a command, a line of four dashes, and its output; `#` lines are for readers. Commands:

    cluster SHARDS NODE=ROOM...     Dispatch functions and nodes
    revision KEY [max=] [min=] [initial=] [concurrency=] [role=] [group=]   known from the start of the cluster
    request SHARD COUNT [KEY]       arrive there
    ready | finish [COUNT]          what starts becomes ready; what runs is answered
    fail REASON                     what starts, fails so (a reason that begins with "permanent": for good)
    time SECONDS                    pass, with everything delivered
    kill SHARD | boot SHARD | room NODE COUNT
    state                           of requests, slots and instances

The output is what happened meanwhile, repetitions left out. `make golden` rewrites it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Protocol

import pytest

from kserve_ext.core.facts import Revision
from kserve_ext.core.ids import FunctionID, NodeID, RevisionKey
from tests.support.scripts import played
from tests.support.world import World
from tests.support.world_nodes import REVISION, Request, revision

SCRIPTS = Path(__file__).resolve().parents[2] / "golden" / "home"


class Golden(Protocol):
    def __call__(self, name: str, text: str) -> None: ...


class Script:
    def __init__(self) -> None:
        self.revisions: list[Revision] = []
        self.world: World

    def run(self, command: str) -> str:
        verb, *args = command.split()
        if verb != "revision" and verb != "cluster":
            self.world.log.clear()
        said = getattr(self, f"do_{verb}")(*args)
        if said is None:
            self.world.flush()
            self.world.check()
            said = "\n".join(_without_repetition(self.world.log))
        return f"{said}\n" if said else ""

    def do_cluster(self, shards: str, *nodes: str) -> str:
        rooms = {name: int(room) for name, _, room in (n.partition("=") for n in nodes)}
        self.world = World(int(shards), rooms, self.revisions or [revision()])
        self.world.flush()
        homes = {r.home_key: self.world.home_of(r.home_key) for r in self.world.revisions.values()}
        return "\n".join(f"home of {key}: {home}" for key, home in homes.items())

    def do_revision(self, key: str, *options: str) -> str:
        rev = revision(key)
        for option in options:
            name, _, value = option.partition("=")
            if name in ("min", "max", "initial"):
                changes: dict[str, Any] = {name: int(value)}
                rev = rev._replace(scale=rev.scale._replace(**changes))
            elif name == "concurrency":
                rev = rev._replace(concurrency=int(value))
            elif name == "role":
                rev = rev._replace(role=value)  # type: ignore[arg-type]
            elif name == "group":
                rev = rev._replace(group=value)
        self.revisions.append(rev)
        return ""

    def do_request(self, shard: str, count: str, key: str = REVISION) -> None:
        for _ in range(int(count)):
            self.world.request(FunctionID(shard), RevisionKey(key))

    def do_ready(self) -> None:
        self.world.flush()
        for run in self.world.all_running():
            if run.state == "starting":
                self.world.make_ready(run)

    def do_finish(self, count: str = "") -> None:
        sent = [r for r in self.world.requests if r.state == "sent"]
        for request in sent[: int(count)] if count else sent:
            self.world.finish(request)

    def do_fail(self, *reason: str) -> None:
        for node in self.world.nodes.values():
            node.fail = " ".join(reason)
        self.do_ready()

    def do_time(self, seconds: str) -> None:
        self.world.pass_time(float(seconds))

    def do_room(self, node: str, room: str) -> None:
        self.world.nodes[NodeID(node)].room = int(room)

    def do_kill(self, shard: str) -> None:
        self.world.kill(FunctionID(shard))

    def do_boot(self, shard: str) -> None:
        self.world.boot(FunctionID(shard))
        self.world.publish()

    def do_state(self) -> str:
        lines = []
        by_shard: dict[str, list[Request]] = {}
        for request in self.world.requests:
            by_shard.setdefault(request.shard, []).append(request)
        for shard, requests in sorted(by_shard.items()):
            counts = Counter(r.state for r in requests)
            lines.append(f"{shard}: " + ", ".join(f"{n} {state}" for state, n in sorted(counts.items())))
            reasons = sorted({r.reason for r in requests if r.reason})
            lines.extend(f"  refused: {reason}" for reason in reasons)
        for run in self.world.all_running():
            lines.append(f"{run.id} on {run.node}: {run.state}, {len(run.requests)} requests")
        for proc in self.world.live():
            for home in proc.homes.values():
                for key, rh in sorted(home.revisions.items()):
                    wants, phase = rh.goal.count, rh.goal.activity.phase
                    lines.append(f"{proc.id} as home of {key}: goal {wants}, ready {rh.fleet.ready}, {phase}")
        return "\n".join(lines)


def _without_repetition(lines: list[str]) -> list[str]:
    """A Grant that says what the last one to that shard said is left out."""
    last: dict[str, str] = {}
    out: list[str] = []
    for line in lines:
        _, grants, said = line.partition(" grants ")
        shard = said.partition(" ")[0]
        if grants and last.get(shard) == line:
            continue
        if grants:
            last[shard] = line
        out.append(line)
    return out


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.txt")), ids=lambda p: p.stem)
def test_script(script: Path, golden: Golden) -> None:
    golden(f"home/{script.name}", played(script, Script().run))


def test_there_are_scripts() -> None:
    assert {p.stem for p in SCRIPTS.glob("*.txt")} >= {
        "from_zero",
        "burst",
        "scale_down",
        "take_over",
        "gang",
    }
