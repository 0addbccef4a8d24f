"""Reads the text of an annotation or ConfigMap value as a number within a range, as Knative's webhooks would.

Each maker returns a Reader: what it accepts in words, for messages and docs, and the function that reads it or
raises ValueError. Infinities, NaN, underscores and blanks, which Python's own parsers let through, are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from kserve_ext.api import durations
from kserve_ext.api.problems import Findings

MOST: Final = 2**31 - 1
_TRUE: Final = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_FALSE: Final = frozenset(("0", "f", "F", "FALSE", "false", "False"))
N = TypeVar("N", int, float)


class Reader(NamedTuple):
    allowed: str
    read: Callable[[str], Any]


def integer(low: int = 0, high: int = MOST) -> Reader:
    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,19}", text):
            raise ValueError("not a whole number")
        return _within(int(text), low, high)

    upto = f"an integer >= {low}" if high == MOST else f"an integer from {low} to {high}"
    return Reader(upto, read)


def number(low: float, high: float = math.inf, above: bool = False) -> Reader:
    """`above`: `low` itself isn't allowed."""

    def read(text: str) -> float:
        if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
            raise ValueError("not a number")
        value = _within(float(text), low, high)
        if math.isinf(value) or (above and value == low):
            raise ValueError("out of range")
        return value

    least = f"a number {'>' if above else '>='} {low:g}"
    return Reader(least if math.isinf(high) else f"a number from {low:g} to {high:g}", read)


def duration(low: str, high: str, whole_seconds: bool = False) -> Reader:
    least, most = durations.nanoseconds(low), durations.nanoseconds(high)

    def read(text: str) -> float:
        value = _within(durations.nanoseconds(text), least, most)
        if whole_seconds and value % 10**9:
            raise ValueError("has fractions of a second")
        return value / 10**9

    whole = " in whole seconds" if whole_seconds else ""
    return Reader(f"a duration from {low} to {high}{whole}, such as 90s or 1m30s", read)


def choice(*words: str) -> Reader:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError("unknown word")
        return text

    return Reader(f"one of {', '.join(words)}", read)


def flag() -> Reader:
    """The words of Go's strconv.ParseBool."""

    def read(text: str) -> bool:
        if text not in _TRUE | _FALSE:
            raise ValueError("neither true nor false")
        return text in _TRUE

    return Reader("true or false", read)


def burst_capacity() -> Reader:
    inner = number(0).read
    return Reader(
        "-1 (unlimited), 0 or a number > 0", lambda text: -1.0 if _is_minus_one(text) else inner(text)
    )


def take(reader: Reader, text: str, where: str, findings: Findings) -> Any:
    """The value, or None and a problem that names the field, the value and what is allowed."""
    try:
        return reader.read(text)
    except ValueError as wrong:
        findings.problem(where, f"not allowed: {wrong}", f"use {reader.allowed}", text)
        return None


def _is_minus_one(text: str) -> bool:
    return bool(re.fullmatch(r"-1(\.0*)?", text))


def _within(value: N, low: float, high: float) -> N:
    if not low <= value <= high:
        raise ValueError("out of range")
    return value
