"""How long growth takes with real processes (`python -m bench.elastic`): from an application to the consistent view.

Controller, a Schedule function, a ClusterMgr function and two node agents are processes; NODES further nodes are
members in this process, each with a connection of its own, and acknowledge every view as a real one does. A member of
this process applies, again and again; each time one Schedule function is forked from a node's zygote, joins, and
everybody is told. What the controller says it took is split where the new function is in the view: the process's
start before, the view after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import uvloop

from autoscaler_shim.node.cleanup import stop_all
from bench.record import ROOT, record
from kserve_ext.core.facts import Kind, Member, Resources
from kserve_ext.core.ids import FunctionID
from kserve_ext.rpc import Rpc
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.ports import free_port
from kserve_ext.wire import messages as m

NODES: Final = 208
ROUNDS: Final = 7
AGENTS: Final = ("node-0", "node-1")
PATIENCE_S: Final = 30.0


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder, secrets.token_bytes(32)
        (folder / "cluster.key").write_bytes(self.key)
        self.controller = f"127.0.0.1:{free_port()}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.members: list[Membership] = []

    def start(self, part: str, name: str, *more: str) -> None:
        port = self.controller.rpartition(":")[2] if part == "controller" else "0"
        argv = [sys.executable, "-m", "autoscaler_shim", part, "--id", name, "--data", str(self.folder)]
        argv += ["--controller", self.controller, "--port", port, *more]
        env = {**os.environ, "GALAXY_LOG_LEVEL": "ERROR"}
        self.processes.append(subprocess.Popen(argv, cwd=ROOT, env=env, stderr=subprocess.DEVNULL))

    def start_all(self) -> None:
        bounds = ("--bounds", f"schedule=1:{ROUNDS + 1}", "--threshold", "schedule=1")
        self.start("controller", "controller-0", *bounds)
        self.start("cluster-mgr", "cluster-mgr-0")
        self.start("schedule", "schedule-0")
        for name in AGENTS:
            size = ("--cpu", "8", "--memory", "4Gi", "--functions", "autoscaler_shim")
            self.start("node", name, *size)

    async def join(self, name: str, kind: Kind) -> Membership:
        rpc = Rpc(name, self.key)
        rpc.handle(m.Probe, lambda message, caller: m.Ack())
        member = Member(FunctionID(name), kind, await rpc.listen("127.0.0.1"), time.time_ns())
        membership = Membership(rpc, member, self.controller)
        # Without room: functions are started by the agents.
        membership.report_load(lambda: m.Load(free=Resources()))
        await membership.start()
        self.members.append(membership)
        return membership

    async def said(self, of: Membership) -> dict[str, Any]:
        answer: m.Description = await of.rpc.call(self.controller, m.Describe())
        found: dict[str, Any] = json.loads(answer.body)
        return found

    async def close(self) -> None:
        for membership in self.members:
            await membership.rpc.close()
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(60)
        for name in AGENTS:
            stop_all(self.folder / "nodes" / name)


async def grown(site: Site) -> list[dict[str, float]]:
    """Of each round: joined_s, view_s."""
    applicant = await site.join("applicant", "objects")
    for number in range(NODES):
        await site.join(f"member-{number:04d}", "node")
    deadline = time.monotonic() + PATIENCE_S
    found: list[dict[str, float]] = []
    ready = False
    while not ready:
        said = await site.said(applicant)
        nodes = [
            json.loads((await _describe(applicant, node)).body) for node in AGENTS if _addr(applicant, node)
        ]
        ready = (
            said["consistent"] and all(n["slots"].get("autoscaler_shim") for n in nodes) and len(nodes) == 2
        )
        await asyncio.sleep(0.2)
        if time.monotonic() > deadline:
            raise SystemExit("error: the cluster is not whole")
    await asyncio.sleep(4.0)  # a controller that has just begun starts nothing
    load = m.Load(srps=1.01)
    before = None
    while len(found) < ROUNDS:
        answer: m.ApplyReply = await applicant.rpc.call(
            site.controller, m.Apply(FunctionID("schedule-0"), "schedule", load.srps, load)
        )
        await asyncio.sleep(0.25)
        now = (await site.said(applicant))["scaled"]["schedule"]["grown"]
        if now is not None and now != before:
            found.append(now)
            before = now
        if time.monotonic() > deadline + ROUNDS * 10:
            raise SystemExit(f"error: {len(found)} of {ROUNDS} rounds; the last answer: {answer.reason}")
    return found


def _addr(of: Membership, name: str) -> str:
    return of.addr_of(name)


async def _describe(of: Membership, name: str) -> m.Description:
    answer: m.Description = await of.rpc.call(_addr(of, name), m.Describe())
    return answer


def rows() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="bench-elastic-") as name:
        site = Site(Path(name))
        site.start_all()

        async def run() -> list[dict[str, float]]:
            try:
                return await grown(site)
            finally:
                await site.close()

        found: list[dict[str, float]] = uvloop.run(run())
    conditions = (
        f"real processes on one machine; {NODES + len(AGENTS)} nodes, of which {NODES} are members in the process "
        f"that measures; one Schedule function more each time, from 1 to {ROUNDS + 1}; median of {ROUNDS}, "
        f"worst {max(f['view_s'] for f in found) * 1e3:.1f} ms for the view"
    )
    base = {"peer": None, "peer_name": None, "unit": "ms", "better": "lower", "conditions": conditions}
    joined, view = (statistics.median(f[key] for f in found) * 1e3 for key in ("joined_s", "view_s"))
    return [
        {"metric": "application to the new function in the view", "ours": round(joined, 2), **base},
        {"metric": "new view to its last acknowledgement", "ours": round(view, 2), **base},
        {"metric": "application to the consistent view", "ours": round(joined + view, 2), **base},
    ]


def main() -> int:
    argparse.ArgumentParser(prog="python -m bench.elastic", description=__doc__).parse_args()
    record("elastic", rows())
    return 0


if __name__ == "__main__":
    sys.exit(main())
