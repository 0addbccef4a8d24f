"""galaxy status: the cluster at a glance, once or continuously.

That of the data folder while it runs, else the Kubernetes cluster of the kubeconfig, if it can be reached.
"""

from __future__ import annotations

import time
from typing import Any

import click
from rich.live import Live

from kserve_ext.api.quantities import show_mebibytes, show_milli
from kserve_ext.cli.client import Client
from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.failure import Failure
from kserve_ext.cli.knative import overview
from kserve_ext.cli.knative.session import cluster_options
from kserve_ext.cli.output import data_option, dump, format_option, screen, section, watched

Document = dict[str, Any]
EVERY_S = 1.0


@click.command()
@data_option
@cluster_options
@format_option("json", "yaml")
@click.option(
    "-w", "--watch", is_flag=True, help="Again every second, until Ctrl-C; once if stdout is no terminal."
)
def command(folder: Folder, context: str, namespace: str, output: str | None, watch: bool) -> None:
    """Show functions, partitions, nodes, slots, instances and held requests.

    Where no embedded cluster runs, or with --context: which parts of Knative are ours in a Kubernetes cluster.
    """
    if context or (not folder.runs() and overview.is_configured()):
        facts = overview.look(context, namespace)
        if output:
            dump(facts, output)
        else:
            click.echo(overview.picture(facts))
        return
    client = Client(folder)
    if output:
        dump(client.call("GET", "/api/status").body, output)
        return
    if not watch or not watched():
        click.echo(picture(client.call("GET", "/api/status").body))
        return
    try:
        with Live(refresh_per_second=4) as live:
            while True:
                try:
                    live.update(screen(picture(client.call("GET", "/api/status").body)))
                except Failure as failure:
                    live.update(screen(failure.format()))
                time.sleep(EVERY_S)
    except KeyboardInterrupt:
        return


def picture(facts: Document) -> str:
    """Tables of everything."""
    controller = facts.get("controller") or {}
    away = f", controller: {controller['error']}" if controller.get("error") else ""
    head = f"epoch {facts['epoch']}, {len(facts['members'])} members, {facts['held']} held requests{away}"
    parts = [head, _scaled(controller), _functions(facts), _nodes(facts)]
    waiting = _waiting(facts)
    parts += [section("Waiting for room", WAITING, waiting)] if waiting else []
    return "\n".join((*parts, _revisions(facts), _instances(facts)))


WAITING = ("AT", "WHO", "INSTANCES", "PRIORITY", "WAITED", "NAMESPACE HAS", "ROOM KEPT ON")


def _waiting(facts: Document) -> list[tuple[object, ...]]:
    """Each Schedule function's line, in its order."""
    return [
        (
            function["id"],
            w["waiter"],
            w["instances"],
            w["priority"],
            f"{w['waited_s']:.0f} s",
            f"{100 * w['share']:.0f} %",
            " ".join(w["kept_on"]) + (" (preempting)" if w["preempting"] else ""),
        )
        for function in facts["functions"]
        for w in function.get("waiting") or ()
    ]


def _scaled(controller: Document) -> str:
    """How many functions of each kind there are, are wanted and may be, and why; or why nobody says."""
    silent = controller.get("standby") or controller.get("error")
    if silent:
        return f"\nControl plane: {silent}; galaxy doctor says more"
    rows = []
    for kind, said in (controller.get("scaled") or {}).items():
        low, high = said["min"], said["max"]
        decided = said["decision"]
        at = time.strftime("%H:%M:%S", time.localtime(decided["at"]))
        rows.append(
            (
                kind,
                said["running"],
                said["wanted"],
                f"{low}:{high}" if high > low else f"{low}, fixed",
                said["starting"],
                said["draining"],
                f"{said['srps']:,.0f}/s" + (f" of {said['threshold']:,.0f}/s each" if high > low else ""),
                said["short"] or (f"{at} {decided['reason']}" if high > low else ""),
            )
        )
    names = ("KIND", "RUNNING", "WANTED", "MAY BE", "STARTING", "DRAINING", "LOAD", "LAST DECISION")
    return section("Control plane", names, rows)


def _functions(facts: Document) -> str:
    rows = []
    for function in facts["functions"]:
        nodes = function.get("nodes")
        owned = ""
        if isinstance(nodes, list):
            owned = " ".join(str(n.get("node") if isinstance(n, dict) else n) for n in nodes)
        rows.append(
            (
                function["id"],
                function.get("epoch", ""),
                owned,
                function.get("held", ""),
                function.get("in_flight", ""),
                str(function.get("error", "")),
            )
        )
    return section("Functions", ("FUNCTION", "EPOCH", "PARTITION", "HELD", "IN FLIGHT", "ERROR"), rows)


def _nodes(facts: Document) -> str:
    rows = []
    for node in facts["nodes"]:
        free, capacity = node.get("free") or {}, node.get("capacity") or {}
        rows.append(
            (
                node["node"],
                f"{show_milli(free.get('cpu_milli', 0))}/{show_milli(capacity.get('cpu_milli', 0))}",
                f"{show_mebibytes(free.get('memory_mib', 0))}/{show_mebibytes(capacity.get('memory_mib', 0))}",
                f"{free.get('gpus', 0)}/{capacity.get('gpus', 0)}",
                " ".join(f"{module}:{count}" for module, count in (node.get("slots") or {}).items()),
                node.get("instances", 0),
                " ".join(str(model) for model in node.get("models") or ()),
                _labels(node),
                str(node.get("error", "")),
            )
        )
    names = (
        "NODE",
        "CPU FREE",
        "MEMORY FREE",
        "GPUS FREE",
        "SLOTS",
        "INSTANCES",
        "MODELS",
        "LABELS",
        "ERROR",
    )
    return section("Nodes", names, rows)


def _labels(node: Document) -> str:
    """Those that somebody gave it."""
    labels = node.get("labels") or {}
    return ",".join(f"{key}={value}" for key, value in labels.items() if key != "kubernetes.io/hostname")


def _revisions(facts: Document) -> str:
    rows = [
        (
            r["revision"],
            f"{r['traffic']} %",
            r["home"],
            r["desired"],
            r["ready"],
            r["starting"],
            r["held"],
            r["reason"],
        )
        for r in facts["revisions"]
    ]
    names = ("REVISION", "TRAFFIC", "HOME", "DESIRED", "READY", "STARTING", "HELD", "WHY")
    return section("Revisions", names, rows)


def _instances(facts: Document) -> str:
    rows = [
        (
            i.get("id", ""),
            i["node"],
            i.get("state", ""),
            i.get("pid", ""),
            i.get("addr", ""),
            str(i.get("reason") or ""),
        )
        for i in facts["instances"]
    ]
    return section("Instances", ("INSTANCE", "NODE", "STATE", "PID", "ADDRESS", "WHY"), rows)
