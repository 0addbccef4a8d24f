"""galaxy kv: what moves KV between instances, by itself."""

from __future__ import annotations

import click

from kserve_ext.cli.kv.command import bench


@click.group()
def command() -> None:
    """What moves KV between instances."""


command.add_command(bench)
