"""`galaxy VERB ...`, also `python -m kserve_ext.cli VERB ...`. A verb's module is imported when it is used."""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

#: Verb -> one line of help, in the order of the help page.
VERBS: Final = {
    "up": "Start an embedded cluster on this machine.",
    "down": "Stop it, with everything that it runs.",
    "apply": "Create or change objects from files.",
    "get": "List objects.",
    "describe": "Show one object, its revisions and instances.",
    "delete": "Delete objects.",
    "logs": "Print what a service, an instance or a part of the cluster printed.",
    "explain": "Show where the time of one request went.",
    "status": "Show functions, nodes, instances and held requests; in Knative, which parts are ours.",
    "top": "Show what every process uses.",
    "doctor": "Check this machine and the cluster, and say what to do.",
    "simulate": "Run control planes in virtual time on one trace, ours and its rivals.",
    "kv": "Measure what moves KV between instances.",
    "install": "Replace Knative's activator and autoscaler in a Kubernetes cluster.",
    "uninstall": "Put them back.",
}


class Verbs(click.Group):
    """Loads kserve_ext/cli/verbs/VERB.py on demand; each has a click command of that name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"kserve_ext.cli.verbs.{cmd_name}")
        command: click.Command = module.command
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from kserve_ext.api.problems import did_you_mean

        if args and args[0] not in VERBS and not args[0].startswith("-"):
            ctx.fail(f"there is no verb {args[0]}; {did_you_mean(args[0], VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group("galaxy", cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Galaxy for KServe: an embedded cluster, and the operator's tools."""


if __name__ == "__main__":
    sys.exit(main(prog_name="galaxy"))
