"""galaxy up: starts an embedded cluster of real processes on this machine, and waits until it is whole."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from math import isfinite
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from kserve_ext.api import node_labels as node_label_table
from kserve_ext.api import quantities
from kserve_ext.api.weights import read_weights
from kserve_ext.cli import zygotes
from kserve_ext.cli.client import Client
from kserve_ext.cli.embedded import elastic
from kserve_ext.cli.embedded.elastic import BoundsType, ThresholdType
from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.embedded.parts import ROOT, environment, parts
from kserve_ext.cli.embedded.stop import stop_cluster
from kserve_ext.cli.failure import Failure
from kserve_ext.cli.output import data_option
from kserve_ext.core.control.facts import Bounds
from kserve_ext.rpc.ports import free_port, free_ports
from kserve_ext.store.location import Location

WHOLE_WITHIN_S = 60.0
HOST = "127.0.0.1"
_DOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def _claims(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    claims = {}
    for value in values:
        claim, sep, path = value.partition("=")
        folder = Path(path).expanduser().absolute()
        if not sep or not claim or not path:
            raise click.BadParameter(f"{value!r}: write CLAIM=/FOLDER")
        if not folder.is_dir():
            raise click.BadParameter(f"{value!r}: {folder} is not a folder; create it or correct the path")
        claims[claim] = str(folder)
    return claims


def _cpu(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else _quantity(value, quantities.milli)


def _memory(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else _quantity(value, quantities.mebibytes)


def _store(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    if not value:
        return ""
    try:
        where = Location.of(value, b"")
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    for file in where.missing():
        raise click.BadParameter(f"{str(where)!r}: {file} is not there; correct the path")
    return value


def _domain(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not _DOMAIN.fullmatch(value):
        raise click.BadParameter(f"{value!r}: write a DNS name in lower case, e.g. galaxy.local")
    return value


def _finite(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if not isfinite(value):
        raise click.BadParameter(f"{value}: write a number of seconds, e.g. 60")
    return value


def _quantity(value: str, read: Any) -> int:
    try:
        amount = int(read(value))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if amount <= 0:
        raise click.BadParameter(f"{value!r}: must be more than nothing")
    return amount


@click.command()
@data_option
@click.option("--dispatch", type=BoundsType(), default="1", show_default=True, help="Dispatch functions.")
@click.option("--schedule", type=BoundsType(), default="1", show_default=True, help="Schedule functions.")
@click.option(
    "--cluster-mgr", type=BoundsType(), default="1", show_default=True, help="ClusterMgr functions."
)
@click.option(
    "--threshold",
    type=ThresholdType(),
    multiple=True,
    help="Requests a second that one function bears, instead of what was measured, e.g. schedule=500.",
)
@click.option(
    "--stable",
    type=click.FloatRange(1.0),
    callback=_finite,
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Of low load, before a function goes.",
)
@click.option("--nodes", type=click.IntRange(1, 256), default=1, show_default=True, help="Nodes.")
@click.option("--node-cpu", callback=_cpu, help="CPU of each node, e.g. 4, 500m.  [default: its share]")
@click.option("--node-memory", callback=_memory, help="Memory of each node, e.g. 8Gi.  [default: its share]")
@click.option("--node-gpus", type=click.IntRange(0), default=0, show_default=True, help="GPUs of each node.")
@click.option(
    "--node-labels",
    multiple=True,
    metavar="[NODE:]KEY=VALUE,...",
    help="Labels of every node, or of one, e.g. node-0:topology.kubernetes.io/zone=a.",
)
@click.option(
    "--namespace-weights",
    default="",
    metavar="NAMESPACE=N,...",
    help="Shares of a full cluster, e.g. team-a=2; 1 where none is given.",
)
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Clients come in here; 0 = any.",
)
@click.option(
    "--controllers",
    type=click.IntRange(1, 8),
    default=1,
    show_default=True,
    help="Top-level controllers: one leads, the others stand by; needs --store.",
)
@click.option(
    "--store",
    callback=_store,
    metavar="URL",
    help="State store, e.g. redis://HOST:PORT/DB, rediss://USER:PASSWORD@HOST.  [default: the controller's own]",
)
@click.option("--pvc", multiple=True, callback=_claims, metavar="CLAIM=FOLDER", help="Where pvc://CLAIM is.")
@click.option(
    "--domain",
    callback=_domain,
    default="galaxy.local",
    show_default=True,
    help="Hosts are NAME.NAMESPACE.DOMAIN.",
)
@click.option("--no-wait", is_flag=True, help="Don't wait until the runtimes of the services are imported.")
@click.option("--foreground", is_flag=True, help="Stay until Ctrl-C, then stop the cluster.")
def command(
    folder: Folder,
    dispatch: Bounds,
    schedule: Bounds,
    cluster_mgr: Bounds,
    threshold: tuple[str, ...],
    stable: float,
    nodes: int,
    node_cpu: int | None,
    node_memory: int | None,
    node_gpus: int,
    node_labels: tuple[str, ...],
    namespace_weights: str,
    http_port: int,
    controllers: int,
    store: str,
    pvc: dict[str, str],
    domain: str,
    no_wait: bool,
    foreground: bool,
) -> None:
    """Start an embedded cluster on this machine, and wait until it is whole.

    Objects of an earlier cluster in the same data folder are still there, and what their instances are forked from
    is waited for, too. Where only the supervisor died, a new one takes over what still runs; the cluster stays as it
    was started, whatever options are given.

    A number of functions may be MIN:MAX: the controller then starts and ends functions as the load asks for it.
    """
    check_free(folder)
    if folder.living():
        adopt(folder, foreground)
        return
    port = check_port(http_port)
    bounds = {"dispatch": dispatch, "schedule": schedule, "cluster-mgr": cluster_mgr}
    counts = {kind: b.min for kind, b in bounds.items()} | {"node": nodes, "controller": controllers}
    if controllers > 1 and not store:
        raise click.BadParameter(
            "several controllers need a store that outlives each of them: give --store",
            param_hint="--controllers",
        )
    try:
        labels = node_label_table.by_node(node_labels, [f"node-{n}" for n in range(nodes)])
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--node-labels") from None
    try:
        read_weights(namespace_weights)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--namespace-weights") from None
    cpu, memory = machine()
    prepare(folder)
    check_store(folder, store)
    objects, *ports = free_ports(1 + controllers)
    cluster = {
        "controller": ",".join(f"{HOST}:{port}" for port in ports),
        "objects": f"{HOST}:{objects}",
        "http": f"{HOST}:{port}",
        "domain": domain,
        "store": store,
        "pvc": pvc,
        "counts": counts,
        "elastic": elastic.document(bounds, threshold, stable),
        "node": {
            "cpu_milli": node_cpu or max(1000, cpu // nodes),
            "memory_mib": node_memory or int(memory * 0.8 / nodes),
            "gpus": node_gpus,
        },
        "labels": labels,
        "weights": namespace_weights,
    }
    folder.write_cluster(cluster)
    supervisor = start(folder)
    try:
        took = wait_whole(folder, cluster, supervisor)
    except BaseException:
        stop_cluster(folder, lambda what: None)
        raise
    click.echo(
        f"cluster is up after {took:.1f} s: {sum(counts.values()) + 1} parts, {nodes} node(s), in {folder.root}"
    )
    click.echo(f"requests: http://{cluster['http']}  (Host: NAME.NAMESPACE.{domain})")
    if not no_wait:
        zygotes.wait(Client(folder))
    if foreground:
        _stay(folder, supervisor)


def check_free(folder: Folder) -> None:
    """Failure when a whole cluster runs in the data folder."""
    pid = folder.supervisor()
    if pid:
        raise Failure(
            "a cluster runs in this data folder",
            f"supervisor pid {pid} in {folder.root}",
            f"use it, or stop it: galaxy down --data {folder.root}, or choose another folder with --data",
        )


def adopt(folder: Folder, foreground: bool) -> None:
    """A new supervisor for parts whose own was killed. Whatever happens, what serves is not taken down."""
    cluster = folder.cluster()
    living = len(folder.living())
    supervisor = start(folder)
    took = wait_whole(folder, cluster, supervisor)
    click.echo(
        f"a new supervisor took over {living} parts after {took:.1f} s, with the options that they have; "
        f"to change them: galaxy down --data {folder.root}, then up"
    )
    click.echo(f"requests: http://{cluster['http']}  (Host: NAME.NAMESPACE.{cluster['domain']})")
    if foreground:
        _stay(folder, supervisor)


def check_port(port: int) -> int:
    """The port, or a free one for 0; Failure when it is taken."""
    if port == 0:
        return free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise Failure(
                f"port {port} is not free",
                f"{HOST}:{port}: {error.strerror}",
                "choose another one with --http-port (0 takes any free one)",
            ) from None
    return port


def check_store(folder: Folder, url: str) -> Location | None:
    """Where it is; Failure when it can't be written to: better said now than by every part."""
    if not url:
        return None
    from kserve_ext.store import Unavailable
    from kserve_ext.store.redis import RedisStore

    async def look() -> Location:
        store = RedisStore(Location.of(url, folder.key.read_bytes()))
        try:
            await store.scan("objects/")
            return store.where
        finally:
            await store.close()

    try:
        return asyncio.run(look())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--store") from None
    except Unavailable as error:
        what, _, do = str(error).partition("; ")
        raise Failure("the state store can't be used", what, do) from None


def machine() -> tuple[int, int]:
    """CPU in thousandths and memory in MiB of this machine."""
    import psutil

    return len(os.sched_getaffinity(0)) * 1000, psutil.virtual_memory().total // (1 << 20)


def prepare(folder: Folder) -> None:
    """The folder for its owner only, with a key."""
    try:
        folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (folder.run, folder.log, folder.root / "pvc"):
            path.mkdir(exist_ok=True)
        for path in folder.run.glob("*.json"):
            path.unlink()
        if not folder.key.exists():
            handle = os.open(folder.key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
    except OSError as error:
        raise Failure(
            f"the data folder {folder.root} can't be used",
            f"{error.strerror}: {error.filename}",
            "choose another one with --data",
        ) from None


def start(folder: Folder) -> subprocess.Popen[bytes]:
    """The supervisor, in a session of its own: it outlives this command."""
    with (folder.log / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "kserve_ext.cli.embedded.supervisor", "--data", str(folder.root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=environment(),
            start_new_session=True,
        )


def wait_whole(folder: Folder, cluster: dict[str, Any], supervisor: subprocess.Popen[bytes]) -> float:
    """Seconds until every part listens and is in the view; Failure after WHOLE_WITHIN_S."""
    wanted = [part.id for part in parts(cluster, folder.root)]
    began = time.monotonic()
    console = Console(stderr=True)
    with console.status("starting") as status:
        while True:
            missing = _missing(folder, wanted)
            if not missing:
                return time.monotonic() - began
            waited = time.monotonic() - began
            status.update(f"starting, {waited:.0f} s: waiting for {', '.join(missing)}")
            if supervisor.poll() is not None:
                last = tail(folder.log / "supervisor.log", 3)
                raise Failure("the supervisor ended", last, "correct it and try again")
            if waited > WHOLE_WITHIN_S:
                why = [f"not in the view after {WHOLE_WITHIN_S:g} s: {', '.join(missing)}"]
                why += [f"{name}: {tail(folder.log / f'{name}.log', 1)}" for name in missing[:3]]
                raise Failure("the cluster is not whole", "\n".join(why), f"see the logs in {folder.log}")
            time.sleep(0.05)


def _missing(folder: Folder, wanted: list[str]) -> list[str]:
    running = {part.id for part in folder.living()}
    missing = [name for name in wanted if name not in running]
    if missing or not folder.supervisor():
        return missing or ["supervisor"]
    try:
        status = Client(folder, 3.0).call("GET", "/api/status").body
    except Failure:
        return ["objects-0"]
    in_view = {str(m["id"]) for m in status["members"]}
    in_view |= {name for name in running if name.startswith("controller-")}
    owned = {n["node"] for f in status["functions"] if f["kind"] == "schedule" for n in f.get("nodes") or ()}
    outside = [f"partition of {node['node']}" for node in status["nodes"] if node["node"] not in owned]
    return [name for name in wanted if name not in in_view] or outside


def tail(path: Path, lines: int) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(printed nothing)"


def _stay(folder: Folder, supervisor: subprocess.Popen[bytes]) -> None:
    click.echo("Ctrl-C stops the cluster")
    try:
        supervisor.wait()
    except KeyboardInterrupt:
        click.echo("stopping")
    stop_cluster(folder, lambda what: click.echo(f"stopping: {what}"))
