"""galaxy describe: one object with everything that is known of it, for reading."""

from __future__ import annotations

import time
from typing import Any

import click
import yaml

from kserve_ext.api.kserve import kv_transfer
from kserve_ext.cli.client import Client, path_of
from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.output import age, data_option, namespace_option, section
from kserve_ext.cli.verbs.get import required_kind

Document = dict[str, Any]


@click.command()
@data_option
@namespace_option
@click.argument("kind")
@click.argument("name")
def command(folder: Folder, namespace: str, kind: str, name: str) -> None:
    """Show one object: its spec, conditions, revisions and instances."""
    of = required_kind(kind)
    client = Client(folder)
    document = client.call("GET", path_of(of, namespace if of.namespaced else "", name)).body
    meta = document["metadata"]
    click.echo(f"Name:        {meta['name']}")
    if of.namespaced:
        click.echo(f"Namespace:   {meta['namespace']}")
    click.echo(f"Kind:        {of.kind} ({of.version})")
    click.echo(f"Generation:  {meta['generation']}, created {age(meta['creationTimestamp'])} ago")
    for title in ("labels", "annotations"):
        for key, value in (meta.get(title) or {}).items():
            click.echo(f"{title.capitalize() + ':':12} {key}: {value}")
    if "spec" in document:
        click.echo("Spec:")
        click.echo(_indented(document["spec"]))
    for name in (n for n in document if n not in ("apiVersion", "kind", "metadata", "spec", "status")):
        click.echo(f"{name[0].upper() + name[1:] + ':':12} {document[name]}")
    if of.kind == "InferenceService":
        _service(client, document)


def _service(client: Client, document: Document) -> None:
    status = document.get("status") or {}
    meta = document["metadata"]
    runtime = status.get("clusterServingRuntimeName") or status.get("servingRuntimeName")
    click.echo(f"Runtime:     {runtime or '(none chosen)'}")
    if status.get("url"):
        click.echo(f"URL:         {status['url']}  (by way of {status['address']['url']})")
    model = status.get("modelStatus") or {}
    click.echo(
        f"Model:       {model.get('transitionStatus')}, {(model.get('states') or {}).get('activeModelState')}"
    )
    failure = model.get("lastFailureInfo")
    if failure:
        click.echo(f"Last failure: {failure['reason']} {age(failure['time'])} ago: {failure['message']}")
    conditions = [
        (
            c["type"],
            c["status"],
            c.get("reason", ""),
            age(c["lastTransitionTime"]),
            c.get("message", ""),
        )
        for c in status.get("conditions") or []
    ]
    click.echo(section("Conditions", ("TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"), conditions))
    facts = client.call("GET", "/api/status").body
    mine = [r for r in facts["revisions"] if r["service"] == f"{meta['namespace']}/{meta['name']}"]
    revisions = [
        (
            r["revision"],
            f"{r['traffic']} %",
            r["desired"],
            r["ready"],
            r["held"],
            r["home"],
            r["reason"],
        )
        for r in mine
    ]
    names = ("REVISION", "TRAFFIC", "DESIRED", "READY", "HELD", "HOME", "WHY")
    click.echo(section("Revisions", names, revisions))
    keys = {r["revision"] for r in mine}
    instances = [i for i in facts["instances"] if i.get("revision") in keys]
    processes = [
        (
            i["id"],
            i["node"],
            i.get("state", ""),
            i.get("pid", ""),
            i.get("addr", ""),
            str(i.get("reason", "")),
        )
        for i in instances
    ]
    click.echo(section("Instances", ("INSTANCE", "NODE", "STATE", "PID", "ADDRESS", "WHY"), processes))
    channels = [row for i in instances for row in _channels(str(i["id"]), (i.get("kv") or {}).get("pairs"))]
    if channels:
        names = ("INSTANCE", "PEER", "STATE", "SINCE", "TRANSFERS", "MIB", "HOW")
        click.echo(section("KV channels", names, channels))


def _channels(instance: str, pairs: list[Document] | None) -> list[tuple[object, ...]]:
    return [
        (
            instance,
            pair["peer"],
            pair["state"],
            f"{max(0.0, time.time() - pair['since']):.0f}s",
            pair.get("transfers", 0),
            f"{pair.get('bytes', 0) / (1 << 20):.1f}",
            ": ".join(str(pair[key]) for key in ("reason", "detail") if pair.get(key))
            or kv_transfer.pair_text(pair).partition(": ")[2],
        )
        for pair in pairs or ()
    ]


def _indented(spec: Document) -> str:
    text = yaml.safe_dump(spec, sort_keys=False)
    return "\n".join(f"  {line}" for line in text.splitlines())
