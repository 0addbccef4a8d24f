"""How the command says that something went wrong: what, why, and what to do. Never a traceback.

Exit codes: 0 done, 1 failed, 2 wrong usage (click's own).
"""

from __future__ import annotations

from typing import IO, Any

import click


class Failure(click.ClickException):
    """`why` and `do` may have several lines, one for each problem."""

    exit_code = 1

    def __init__(self, what: str, why: str = "", do: str = "") -> None:
        super().__init__(what)
        self.why = why
        self.do = do

    def at(self, where: str) -> Failure:
        """The same, with where it happened in front."""
        return Failure(f"{where}: {self.message}", self.why, self.do)

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.format(), file=file, err=file is None)

    def format(self) -> str:
        lines = [f"error: {self.message}"]
        for label, text in (("why", self.why), ("do", self.do)):
            for line in text.splitlines():
                lines.append(f"  {label}: {line}")
        return "\n".join(lines)


def raise_all(failures: list[Failure]) -> None:
    """Shows all but the last and raises that one; nothing when there is none."""
    for each in failures[:-1]:
        each.show()
    if failures:
        raise failures[-1]
