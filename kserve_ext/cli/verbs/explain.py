"""galaxy explain: where the time of one request went; in a Kubernetes cluster, how a revision was woken.

The request's in the cluster of the data folder where there is one; the revision's with a kubeconfig.
"""

from __future__ import annotations

from urllib.parse import quote

import click

from kserve_ext.cli.client import Client
from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.knative import explain, overview
from kserve_ext.cli.knative.session import context_option
from kserve_ext.cli.output import data_option, dump, format_option, namespace_option
from kserve_ext.cli.waterfall import lines


@click.command()
@data_option
@context_option
@namespace_option
@format_option("json", "yaml")
@click.argument("what", metavar="REQUEST_ID|NAME")
def command(folder: Folder, context: str, namespace: str, output: str | None, what: str) -> None:
    """Draw the waterfall of a request; its id is in the x-request-id header of every answer.

    Where no embedded cluster runs, or with --context: how the revision NAME in Kubernetes, or the latest of the
    service NAME, was woken by standby pods, at which level and how fast, or why not.
    """
    if context or (not folder.runs() and overview.is_configured()):
        facts = explain.look(context, namespace, what)
        found = explain.lines(facts)
    else:
        facts = Client(folder).call("GET", f"/api/explain/{quote(what, safe='')}").body
        found = lines(facts)
    if output:
        dump(facts, output)
        return
    for line in found:
        click.echo(line)
