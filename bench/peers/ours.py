"""A real Dispatch function as bench/dataplane.py measures it: `python -m bench.peers.ours PORT HOST:PORT`.

Starts a controller and a Dispatch function as processes of their own, puts the revision default/bench-00001 into the
store, and stands in for the node that runs its one instance (the given server). So every request resolves its
revision, takes and frees a slot, is recorded for explain and counted for scaling, as in a cluster.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import uvloop

from kserve_ext.core.facts import Command, Instance, Member, Model, Resources, Revision, Scale
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.rpc import Caller, Rpc, RpcError
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.ports import free_port
from kserve_ext.store import Unavailable
from kserve_ext.store.remote import RemoteStore
from kserve_ext.wire.messages import Ack, ModInstance, Recall, RecallReply, Stop

NODE = NodeID("node-0")
KEY = RevisionKey("default/bench-00001")
TELL_S = 1.0


def revision() -> Revision:
    return Revision(
        key=KEY,
        service="default/bench",
        generation=1,
        command=Command(argv=("true",)),
        model=Model(),
        needs=Resources(),
        scale=Scale(min=1, max=1),
    )


def start(folder: Path, port: int, controller: str) -> list[subprocess.Popen[bytes]]:
    common = ["--data", str(folder), "--controller", controller]
    parts = [
        [
            "autoscaler_shim",
            "controller",
            "--id",
            "controller-0",
            *common,
            "--port",
            controller.split(":")[1],
        ],
        ["activator_replacement", "--id", "dispatch-0", *common, "--http", f"127.0.0.1:{port}"],
    ]
    env = {**os.environ, "GALAXY_LOG_LEVEL": "ERROR"}
    return [subprocess.Popen([sys.executable, "-m", *part], env=env) for part in parts]


async def serve(folder: Path, controller: str, target: str) -> None:
    """Joins as the node, and says again and again that the instance is ready."""
    rpc = Rpc(NODE, (folder / "cluster.key").read_bytes())
    instance = Instance(InstanceID("bench-00001-0"), KEY, NODE, "ready", target)
    addr = await rpc.listen("127.0.0.1")
    incarnation = time.time_ns()
    membership = Membership(rpc, Member(FunctionID(NODE), "node", addr, incarnation), controller)

    def recall(message: Recall, caller: Caller) -> RecallReply:
        return RecallReply(instances=(instance,), epoch=message.epoch)

    rpc.handle(Recall, recall)
    rpc.handle(Stop, lambda message, caller: Ack())
    await membership.start()
    store = RemoteStore(rpc, controller)
    while True:
        try:
            await store.put_now([(f"revisions/{KEY}", msgspec.msgpack.encode(revision()))])
            break
        except Unavailable:
            await asyncio.sleep(0.1)
    while True:
        for member in membership.view.of("dispatch"):
            epoch = membership.view.epoch
            message = ModInstance(KEY, NODE, incarnation, (instance,), epoch, full=True)
            try:
                await rpc.call(member.addr, message, TELL_S)
            except RpcError as error:
                print(f"{member.id}: {error}", file=sys.stderr)
        await asyncio.sleep(TELL_S)


def main(port: int, target: str) -> None:
    controller = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="bench-ours-") as name:
        folder = Path(name)
        (folder / "cluster.key").write_bytes(secrets.token_bytes(32))
        parts = start(folder, port, controller)

        async def until_told() -> None:
            task = asyncio.ensure_future(serve(folder, controller, target))
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
            try:
                await task
            except asyncio.CancelledError:
                return

        try:
            uvloop.run(until_told())
        finally:
            for part in parts:
                part.terminate()
            for part in parts:
                part.wait(40)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
