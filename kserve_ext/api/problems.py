"""What is wrong with an object: every problem at once, each with the field, the value and the remedy.

A reader of objects collects problems instead of raising at the first one, so that a person fixes a file in one
go. A warning is a field that is understood but not acted on. Never decides what becomes of the object.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class Problem(NamedTuple):
    """One thing that is wrong. `field` is the full path, e.g. spec.predictor.model.storageUri."""

    field: str
    what: str
    remedy: str
    value: str = ""

    def __str__(self) -> str:
        value = f" (is {self.value})" if self.value else ""
        return f"{self.field}: {self.what}{value}; {self.remedy}"


@dataclass(slots=True)
class Findings:
    """Problems and warnings of one object, in the order in which they were found."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def problem(self, path: str, what: str, remedy: str, value: object = None) -> None:
        self.problems.append(Problem(path, what, remedy, "" if value is None else _SHORT.repr(value)))

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def __bool__(self) -> bool:
        """True while there is no problem."""
        return not self.problems


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that `word` was probably meant to be, or "" if none is close; case is ignored."""
    lowered = {name.lower(): name for name in sorted(known)}
    found = difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[found[0]] if found else ""


def did_you_mean(word: str, known: Iterable[str], among: str = "one of") -> str:
    """The remedy for an unknown word: the nearest known one, or all of them."""
    names = sorted(known)
    close = nearest(word, names)
    return f"did you mean {close}?" if close else f"use {among} {', '.join(names)}"
