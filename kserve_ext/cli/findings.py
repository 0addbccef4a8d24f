"""What a check says, and how checks are printed: one line each, with the remedy below it where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import click

Level = Literal["ok", "warning", "failed"]
_MARKS: dict[Level, str] = {"ok": "ok     ", "warning": "warning", "failed": "FAILED "}


class Finding(NamedTuple):
    level: Level
    what: str
    do: str = ""


def show(found: Sequence[Finding]) -> None:
    for finding in found:
        click.echo(f"{_MARKS[finding.level]}  {finding.what}")
        if finding.do:
            click.echo(f"         do: {finding.do}")
