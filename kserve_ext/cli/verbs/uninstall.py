"""galaxy uninstall: Knative's own activator and autoscaler come back as they were."""

from __future__ import annotations

import click
from rich.console import Console

from kserve_ext.cli.failure import Failure
from kserve_ext.cli.knative.parts import NAMES, PARTS, chosen, image_of, is_ours
from kserve_ext.cli.knative.preflight import look
from kserve_ext.cli.knative.session import cluster_options, run
from kserve_ext.cli.knative.steps import Steps
from kserve_ext.kube.client import Client


@click.command()
@cluster_options
@click.option("--only", type=click.Choice(NAMES), help="One of the two.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0),
    default=600.0,
    show_default=True,
    help="Seconds to wait for each roll-out.",
)
def command(context: str, namespace: str, only: str | None, wait_s: float) -> None:
    """Put back what galaxy install has replaced, and remove what it has added.

    What has changed in the Deployments since then stays as it is now.
    """
    with Console(stderr=True).status("looking at the cluster") as status:

        async def work(client: Client) -> None:
            situation = await look(client, namespace)
            if situation.record is None:
                ours = [
                    part.name
                    for part in PARTS
                    if part.name in situation.deployments
                    and is_ours(image_of(situation.deployments[part.name], part), part)
                ]
                if ours:
                    raise Failure(
                        f"{' and '.join(ours)} are ours, but no record says what was there before",
                        f"there is no ConfigMap {namespace}/galaxy-install",
                        "apply Knative's own release: kubectl apply -f serving-core.yaml",
                    )
                click.echo(f"nothing is installed in {namespace}")
                return
            await Steps(client, situation, wait_s, click.echo, status.update).uninstall(
                situation.record, chosen(only)
            )

        run(context, work)
