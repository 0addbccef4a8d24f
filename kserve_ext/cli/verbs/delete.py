"""galaxy delete: by file, or by kind and name."""

from __future__ import annotations

import click

from kserve_ext.api.kserve.resources import KindOf
from kserve_ext.cli.client import Client, path_of
from kserve_ext.cli.documents import load
from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.failure import Failure, raise_all
from kserve_ext.cli.output import data_option, namespace_option
from kserve_ext.cli.verbs.get import required_kind


@click.command()
@data_option
@namespace_option
@click.option("-f", "--filename", "files", multiple=True, help="File, folder, or - for stdin.")
@click.option("--ignore-not-found", is_flag=True, help="What is not there counts as deleted.")
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
def command(
    folder: Folder,
    namespace: str,
    files: tuple[str, ...],
    ignore_not_found: bool,
    kind: str | None,
    names: tuple[str, ...],
) -> None:
    """Delete objects; instances of a deleted service drain and end."""
    if bool(files) == bool(kind):
        raise click.UsageError("give either -f FILE, or KIND and NAME")
    targets: list[tuple[KindOf, str, str]] = []
    if kind:
        found = required_kind(kind)
        if not names:
            raise click.UsageError(f"which {found.kind}? give its name")
        targets = [(found, namespace if found.namespaced else "", name) for name in names]
    else:
        for source in load(files):
            try:
                targets.append((source.kind(), *source.names(namespace)))
            except Failure as failure:
                raise failure.at(source.where) from None
    client = Client(folder)
    failures: list[Failure] = []
    for of, place, name in targets:
        try:
            client.call("DELETE", path_of(of, place, name))
        except Failure as failure:
            if not (ignore_not_found and "not found" in failure.message):
                failures.append(failure)
            continue
        click.echo(f"{of.kind.lower()}.{of.group}/{name} deleted")
    raise_all(failures)
