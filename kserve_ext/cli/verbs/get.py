"""galaxy get: lists objects as kubectl does, with KServe's own columns."""

from __future__ import annotations

from typing import Any

import click

from kserve_ext.api.kserve import conditions, kv_transfer
from kserve_ext.api.kserve.priority_class import PREEMPTS
from kserve_ext.api.kserve.resources import KindOf, kind_of, kind_remedy
from kserve_ext.cli.client import Client, path_of
from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.failure import Failure, raise_all
from kserve_ext.cli.output import age, data_option, dump, format_option, namespace_option, table

Document = dict[str, Any]


def required_kind(word: str) -> KindOf:
    found = kind_of(word)
    if found is None:
        raise Failure(f"unknown kind {word}", "short names are isvc, sr, csr and pc", kind_remedy(word))
    return found


@click.command()
@data_option
@namespace_option
@click.option("-A", "--all-namespaces", is_flag=True, help="In every namespace.")
@format_option("json", "yaml", "wide", "name")
@click.option("-w", "--watch", is_flag=True, help="Go on printing what changes, until Ctrl-C.")
@click.argument("kind")
@click.argument("names", nargs=-1)
def command(
    folder: Folder,
    namespace: str,
    all_namespaces: bool,
    output: str | None,
    watch: bool,
    kind: str,
    names: tuple[str, ...],
) -> None:
    """List objects of KIND (isvc, servingruntime, clusterservingruntime, priorityclass), or these by NAME."""
    of = required_kind(kind)
    place = "" if all_namespaces or not of.namespaced else namespace
    client = Client(folder)
    if watch:
        _watch(client, of, place, names, output)
        return
    missing: list[Failure] = []
    if names:
        if all_namespaces:
            raise click.UsageError("an object has one namespace: give -n, not -A")
        found, missing = _named(client, of, place, names)
        document = {"apiVersion": "v1", "kind": "List", "items": found}
        if len(names) == 1 and found:
            document = found[0]
        if not found:
            raise_all(missing)
    else:
        found = client.call("GET", path_of(of, place)).body["items"]
        document = {"apiVersion": "v1", "kind": "List", "items": found}
    if output in ("json", "yaml"):
        dump(document, output)
    elif output == "name":
        for item in found:
            click.echo(f"{of.kind.lower()}.{of.group}/{item['metadata']['name']}")
    elif not found:
        click.echo(f"no {of.plural}" + (f" in namespace {place}" if place else ""), err=True)
    else:
        click.echo(listing(of, found, wide=output == "wide", namespaces=all_namespaces))
    raise_all(missing)


def _named(
    client: Client, of: KindOf, place: str, names: tuple[str, ...]
) -> tuple[list[Document], list[Failure]]:
    """Those that there are, and what is said of the others."""
    found, missing = [], []
    for name in dict.fromkeys(names):
        try:
            found.append(client.call("GET", path_of(of, place, name)).body)
        except Failure as failure:
            missing.append(failure)
    return found, missing


def _watch(client: Client, of: KindOf, place: str, names: tuple[str, ...], output: str | None) -> None:
    """The header once; the first row's columns are as wide as it needs, later ones may be wider."""
    first = True
    try:
        for event in client.events(path_of(of, place) + "?watch=true"):
            item = event["object"]
            if names and item["metadata"]["name"] not in names:
                continue
            if output in ("json", "yaml"):
                dump(item, output)
                continue
            text = listing(of, [item], wide=output == "wide", namespaces=not place, event=event["type"])
            click.echo(text if first else text.partition("\n")[2])
            first = False
    except KeyboardInterrupt:
        return


def listing(
    of: KindOf, found: list[Document], *, wide: bool, namespaces: bool = False, event: str = ""
) -> str:
    """One row an object."""
    columns = COLUMNS[of.kind][: None if wide else NARROW[of.kind]]
    rows = []
    for item in found:
        row = {**_row(of, item), "NAMESPACE": item["metadata"].get("namespace", ""), "EVENT": event}
        rows.append(row)
    lead = (["EVENT"] if event else []) + (["NAMESPACE"] if namespaces and of.namespaced else [])
    names = [*lead, *columns]
    return table(names, ([row[c] for c in names] for row in rows))


#: The first ones are shown always, the others with -o wide.
COLUMNS = {
    "InferenceService": (
        "NAME",
        "URL",
        "READY",
        "LATESTREADYREVISION",
        "AGE",
        "ROLE",
        "MODEL",
        "RUNTIME",
        "KV",
        "WHY",
    ),
    "ServingRuntime": ("NAME", "DISABLED", "MODELTYPE", "CONTAINERS", "AGE", "PROTOCOLS", "COMMAND"),
    "ClusterServingRuntime": ("NAME", "DISABLED", "MODELTYPE", "CONTAINERS", "AGE", "PROTOCOLS", "COMMAND"),
    "PriorityClass": ("NAME", "VALUE", "GLOBAL-DEFAULT", "AGE", "PREEMPTIONPOLICY"),
}
NARROW = {"InferenceService": 5, "ServingRuntime": 5, "ClusterServingRuntime": 5, "PriorityClass": 5}


def _kv(status: Document) -> str:
    """How KV goes between the services of a group, or why it doesn't; "" of a service without one."""
    for condition in status.get("conditions") or []:
        if condition["type"] == kv_transfer.TYPE:
            return str(condition.get("reason", condition["status"]))
    return ""


def _row(of: KindOf, item: Document) -> dict[str, str]:
    meta, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    base = {"NAME": meta["name"], "AGE": age(meta.get("creationTimestamp", ""))}
    if of.kind == "PriorityClass":
        return {
            **base,
            "VALUE": str(item["value"]),
            "GLOBAL-DEFAULT": str(bool(item.get("globalDefault"))).lower(),
            "PREEMPTIONPOLICY": item.get("preemptionPolicy") or PREEMPTS,
        }
    if of.kind != "InferenceService":
        container = (spec.get("containers") or [{}])[0]
        formats = spec.get("supportedModelFormats") or []
        return {
            **base,
            "DISABLED": str(bool(spec.get("disabled"))).lower(),
            "MODELTYPE": ",".join(f["name"] for f in formats),
            "CONTAINERS": ",".join(c["name"] for c in spec.get("containers") or []),
            "PROTOCOLS": ",".join(spec.get("protocolVersions") or []),
            "COMMAND": " ".join(container.get("command") or [container.get("image") or ""]),
        }
    ready, _ = conditions.ready(status)
    predictor = (status.get("components") or {}).get("predictor") or {}
    notes = {**(meta.get("annotations") or {}), **(spec["predictor"].get("annotations") or {})}
    model = spec["predictor"].get("model") or {}
    return {
        **base,
        "URL": status.get("url", ""),
        "READY": ready,
        "LATESTREADYREVISION": predictor.get("latestReadyRevision", ""),
        "ROLE": notes.get("kserve-galaxy.io/role", "unified"),
        "MODEL": model.get("storageUri", ""),
        "RUNTIME": status.get("clusterServingRuntimeName") or status.get("servingRuntimeName") or "",
        "KV": _kv(status),
        "WHY": conditions.why(status),
    }
