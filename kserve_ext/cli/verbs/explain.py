"""galaxy explain: where the time of one request went, from everybody who saw it."""

from __future__ import annotations

from urllib.parse import quote

import click

from kserve_ext.cli.client import Client
from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.output import data_option, dump, format_option
from kserve_ext.cli.waterfall import lines


@click.command()
@data_option
@format_option("json", "yaml")
@click.argument("request_id")
def command(folder: Folder, output: str | None, request_id: str) -> None:
    """Draw the waterfall of a request; its id is in the x-request-id header of every answer."""
    document = Client(folder).call("GET", f"/api/explain/{quote(request_id, safe='')}").body
    if output:
        dump(document, output)
        return
    for line in lines(document):
        click.echo(line)
