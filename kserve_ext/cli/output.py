"""How things are printed: tables as kubectl has them, json, yaml, ages, and the options that many verbs share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml
from rich.console import Console, Group, RenderableType
from rich.table import Table

from kserve_ext.cli.embedded.folder import Folder, default_data

F = TypeVar("F", bound=Callable[..., Any])


def data_option(function: F) -> F:
    """--data DIR, given to the verb as `folder`."""
    return click.option(
        "--data",
        "folder",
        type=click.Path(path_type=Path, file_okay=False),
        default=default_data,
        callback=lambda ctx, param, value: Folder(value),
        help="Data folder of the cluster.  [default: ${GALAXY_HOME:-~/.galaxy}/default]",
    )(function)


def namespace_option(function: F) -> F:
    return click.option("-n", "--namespace", default="default", show_default=True, help="Namespace.")(
        function
    )


def format_option(*choices: str) -> Callable[[F], F]:
    return click.option(
        "-o", "--output", type=click.Choice(choices), default=None, help="Form of the output."
    )


def console() -> Console:
    """As wide as the terminal; where there is none, as COLUMNS says, else wide enough for any cell."""
    made = Console(highlight=False)
    return made if made.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=400)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Left-aligned columns without lines, as kubectl prints them."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    return made


def section(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> RenderableType:
    """A table under its title, or "none"."""
    made = table(columns, rows)
    return Group(f"\n{title}:" + ("" if made.row_count else " none"), *([made] if made.row_count else []))


def dump(document: Any, form: str) -> None:
    """json or yaml."""
    if form == "json":
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo(yaml.safe_dump(document, sort_keys=False), nl=False)


def age(timestamp: str, now: datetime | None = None) -> str:
    """As kubectl shows it: 12s, 5m, 3h, 2d."""
    try:
        then = datetime.fromisoformat(timestamp)
    except ValueError:
        return ""
    seconds = int(((now or datetime.now(UTC)) - then).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(0, seconds)}s"


def plain(text: str) -> str:
    """Text of others inside rich markup."""
    return text.replace("[", "\\[")
