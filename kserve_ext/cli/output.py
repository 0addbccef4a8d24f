"""How things are printed: tables as kubectl has them, json, yaml, ages, and the options that many verbs share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml
from rich.text import Text

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


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Left-aligned columns, as kubectl prints them: a long line is left to the terminal."""
    lines = [list(columns), *([" ".join(str(cell).split()) for cell in row] for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns))]
    return "\n".join(
        "   ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def section(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table under its title, or "none"."""
    return f"\n{title}:\n{table(columns, rows)}" if rows else f"\n{title}: none"


def watched() -> bool:
    """Whether somebody sees a picture that changes: in a pipe or a file it is printed once instead."""
    return sys.stdout.isatty()


def screen(text: str) -> Text:
    """For rich.live: lines that are too long are cut at the edge of the terminal."""
    return Text(text, no_wrap=True, overflow="ellipsis")


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
