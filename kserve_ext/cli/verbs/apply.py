"""galaxy apply: creates or changes objects, and says at once what keeps a service from working."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.console import Console

from kserve_ext.api.kserve import conditions
from kserve_ext.cli import zygotes
from kserve_ext.cli.client import Client, path_of
from kserve_ext.cli.documents import Source, load
from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.failure import Failure, raise_all
from kserve_ext.cli.output import data_option, namespace_option


@click.command()
@data_option
@namespace_option
@click.option("-f", "--filename", "files", multiple=True, required=True, help="File, folder, or - for stdin.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0),
    default=0.0,
    help="Seconds to wait until ready.",
)
@click.option("--no-wait", is_flag=True, help="Don't wait until the runtimes of the services are imported.")
def command(folder: Folder, namespace: str, files: tuple[str, ...], wait_s: float, no_wait: bool) -> None:
    """Create or change the objects in files, in their order.

    Every object is tried; the exit code is 1 when one was refused, or is accepted but can't work as it is. The first
    service of a runtime is waited for until that runtime is imported on a node: its first request would have to.
    """
    sources = load(files)
    client = Client(folder)
    failures: list[Failure] = []
    services: list[tuple[str, str]] = []
    for source in sources:
        try:
            path = _apply(client, source, namespace)
        except Failure as failure:
            failures.append(failure.at(source.where))
            continue
        if source.kind().kind == "InferenceService":
            services.append((source.where, path))
    for where, path in services:
        wrong = _look(client, where, path, wait_s)
        if wrong is not None:
            failures.append(wrong)
    raise_all(failures)
    if services and not no_wait:
        zygotes.wait(client)


def _apply(client: Client, source: Source, namespace: str) -> str:
    kind = source.kind()
    place, name = source.names(namespace)
    document = source.document
    if place:
        document = {**document, "metadata": {**document["metadata"], "namespace": place}}
    path = path_of(kind, place, name)
    answer = client.call("PATCH", path, document)
    for warning in answer.warnings:
        click.echo(f"warning: {kind.kind.lower()}/{name}: {warning}", err=True)
    rolling = _rolling_out(answer.body) if answer.verb == "configured" else ""
    click.echo(f"{kind.kind.lower()}.{kind.group}/{name} {answer.verb}{rolling}")
    return path


def _rolling_out(document: dict[str, Any]) -> str:
    """Names the revision that waits for the traffic, if there is one."""
    predictor = ((document.get("status") or {}).get("components") or {}).get("predictor") or {}
    serving = {entry["revisionName"] for entry in predictor.get("traffic") or ()}
    latest = predictor.get("latestCreatedRevision")
    return f", rolling out {latest}" if serving and latest and latest not in serving else ""


def _look(client: Client, where: str, path: str, wait_s: float) -> Failure | None:
    """A Failure when the service can't work as it is, or is not ready in the time that was given."""
    until = time.monotonic() + wait_s
    with Console(stderr=True).status(f"waiting for {path.rpartition('/')[2]}") as status:
        while True:
            document = client.call("GET", path).body
            facts: dict[str, Any] = document.get("status") or {}
            name = document["metadata"]["name"]
            state, message = conditions.ready(facts)
            latest, why = conditions.of(facts, "LatestDeploymentReady")
            invalid = (facts.get("modelStatus") or {}).get("transitionStatus") == "InvalidSpec"
            if invalid:
                do = "correct the object and apply it again; it heals by itself when what it needs appears"
                return Failure(f"{where}: {name} was accepted, but can't work", message, do)
            left = until - time.monotonic()
            if (state, latest) == ("True", "True") or wait_s == 0:
                return None
            message = why if state == "True" else message
            do = f"galaxy describe isvc {name}; galaxy logs {name}"
            if broken(facts):
                return Failure(f"{name} can't start", message, do)
            if left <= 0:
                return Failure(f"{name} is not ready after {wait_s:g} s", message, do)
            status.update(f"waiting for {name}, {left:.0f} s left: {message}")
            time.sleep(min(0.2, left))


def broken(facts: dict[str, Any]) -> bool:
    """Whether the newest revision has failed for good."""
    model = facts.get("modelStatus") or {}
    blocked = model.get("transitionStatus") == "BlockedByFailedLoad"
    return blocked and (model.get("lastFailureInfo") or {}).get("reason") == "ModelLoadFailed"
