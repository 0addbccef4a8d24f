"""galaxy install: ours take the place of Knative's activator and autoscaler in a cluster."""

from __future__ import annotations

import click
import yaml
from rich.console import Console

from kserve_ext.cli.failure import Failure
from kserve_ext.cli.knative import certificates
from kserve_ext.cli.knative import plan as plans
from kserve_ext.cli.knative.kinds import kind_of
from kserve_ext.cli.knative.kustomize import Identity
from kserve_ext.cli.knative.parts import NAMES, chosen
from kserve_ext.cli.knative.preflight import denied, look, require, require_common_speech, rivals
from kserve_ext.cli.knative.session import cluster_options, run
from kserve_ext.cli.knative.steps import MANAGER, Steps
from kserve_ext.kube.client import Client
from kserve_ext.kube.kinds import CONFIG_MAPS, DEPLOYMENTS, SECRETS


@click.command()
@cluster_options
@click.option("--only", type=click.Choice(NAMES), help="One of the two.")
@click.option(
    "--component",
    "components",
    multiple=True,
    type=click.Choice(plans.COMPONENTS),
    help="Add this, too; repeatable.",
)
@click.option(
    "--mutual-tls",
    type=click.Choice(tuple(plans.MUTUAL_TLS)),
    help="Parts of ours speak to each other over TLS, with a certificate that this makes, and renews when it is run "
    "in the last 90 of its 365 days; strict: to nobody else.",
)
@click.option(
    "--image-registry",
    "registry",
    default="",
    help="Where our images are, e.g. registry.example/team.  [default: on the nodes]",
)
@click.option("--image-tag", "tag", default="", help="Their tag.  [default: this version]")
@click.option("--any-version", is_flag=True, help="Go ahead with a release of Knative that is not tested.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0),
    default=600.0,
    show_default=True,
    help="Seconds to wait for each roll-out.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be applied, and ask no cluster.")
def command(
    context: str,
    namespace: str,
    only: str | None,
    components: tuple[str, ...],
    mutual_tls: str | None,
    registry: str,
    tag: str,
    any_version: bool,
    wait_s: float,
    dry_run: bool,
) -> None:
    """Replace Knative's activator and autoscaler by ours.

    Changes only what ours need, remembers what was there, and waits until each has rolled out. Done already, it
    changes nothing; with other options, it changes what differs, and takes out what they don't name any more.
    """
    if mutual_tls is not None:
        components = (*components, plans.MUTUAL_TLS[mutual_tls])
    plan = plans.make(only, components, registry, tag, namespace)
    if dry_run:
        click.echo(yaml.safe_dump_all(plan.documents(), sort_keys=False), nl=False)
        return
    with Console(stderr=True).status("looking at the cluster") as status:

        async def work(client: Client) -> None:
            situation = await look(client, namespace)
            require(situation, chosen(only), plan.images, any_version)
            require_common_speech(situation, plan.patches)
            added = [CONFIG_MAPS, *(kind_of(obj) for objects in plan.added.values() for obj in objects)]
            if mutual_tls is not None:
                added.append(SECRETS)
            lacking = await denied(client, namespace, [DEPLOYMENTS], added)
            if lacking:
                do = "use an account that may; docs/install.md lists all permissions"
                raise Failure(f"this account may not do all of this in {namespace}", "\n".join(lacking), do)
            for warning in rivals(situation, chosen(only), MANAGER):
                click.echo(f"warning: {warning}", err=True)
            made: tuple[tuple[str, Identity], ...] = ()
            if mutual_tls is not None:
                made = await certificates.ensure(client, namespace, MANAGER, click.echo)
            steps = Steps(client, situation, wait_s, click.echo, status.update)
            await steps.install(plan._replace(made=made))

        run(context, work)
