"""galaxy down: stops the cluster and everything it runs, in whatever state it is."""

from __future__ import annotations

import click
from rich.console import Console

from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.embedded.stop import stop_cluster
from kserve_ext.cli.output import data_option


@click.command()
@data_option
def command(folder: Folder) -> None:
    """Stop the embedded cluster: supervisor, parts, instances and zygotes.

    Objects stay in the data folder; remove the folder to forget them.
    """
    if not folder.root.is_dir():
        click.echo(f"nothing runs: there is no {folder.root}")
        return
    with Console(stderr=True).status("stopping") as status:
        ended = stop_cluster(folder, lambda what: status.update(f"stopping {what}"))
    click.echo(f"stopped {ended} processes" if ended else "nothing ran")
