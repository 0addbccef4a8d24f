"""Public traces as one stream of arrivals, by time from 0: Azure Functions 2019, Azure LLM, BurstGPT, Mooncake.

Each reader knows the columns of its format and nothing else of the file; whatever can't be read is an error that
names file, line and column. Where a format counts arrivals per minute, a seed settles when in it each one comes.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TextIO

MINUTES: Final = 1440  # of a day of Azure Functions
HEAD: Final = 1 << 16  # characters of a first line that are looked at
_FRACTION: Final = re.compile(r"\.(\d+)")
#: what each format calls what is read of it
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "azure-functions": ("HashOwner", "HashApp", "HashFunction", "1", str(MINUTES)),
    "azure-llm": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Model", "Request tokens", "Response tokens"),
    "mooncake": ("timestamp", "input_length", "output_length", "hash_ids"),
}


class TraceError(Exception):
    """This file is no trace of that format; says where, and what was expected."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. What a format doesn't tell is 0 or empty."""

    at: float  # seconds from the trace's start
    key: str = ""  # the function or session
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0  # of work
    prefix: tuple[int, ...] = ()  # hashes of the prompt's blocks


Reader = Callable[[Path, int], Iterator[Arrival]]


def azure_llm(path: Path, seed: int = 0) -> Iterator[Arrival]:
    """TIMESTAMP (a date with up to 7 digits of fraction), ContextTokens, GeneratedTokens."""
    start: datetime | None = None
    for where, row in _rows(path, COLUMNS["azure-llm"]):
        at = _date(where, row["TIMESTAMP"])
        start = start or at
        yield Arrival(
            (at - start) / timedelta(seconds=1),
            input_tokens=_whole(where, row, "ContextTokens"),
            output_tokens=_whole(where, row, "GeneratedTokens"),
        )


def burstgpt(path: Path, seed: int = 0) -> Iterator[Arrival]:
    """Timestamp (seconds), Model, Request tokens, Response tokens; a failed request has no response tokens."""
    first: float | None = None
    for where, row in _rows(path, COLUMNS["burstgpt"]):
        at = _number(where, row, "Timestamp")
        first = at if first is None else first
        yield Arrival(
            at - first,
            row["Model"],
            _whole(where, row, "Request tokens"),
            _whole(where, row, "Response tokens"),
            seconds=_number(where, row, "Elapsed time") if row.get("Elapsed time") else 0.0,
        )


def mooncake(path: Path, seed: int = 0) -> Iterator[Arrival]:
    """JSON lines: timestamp (milliseconds), input_length, output_length, hash_ids (a block of 512 tokens each)."""
    first: int | None = None
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
                *fields, prefix = (row[name] for name in COLUMNS["mooncake"])
                prefix = tuple(prefix)
            except (ValueError, KeyError, TypeError) as error:
                raise TraceError(
                    f"{where}: expected timestamp, input_length, output_length and hash_ids ({error!r})"
                ) from error
            if not all(isinstance(field, int) and field >= 0 for field in (*fields, *prefix)):
                raise TraceError(f"{where}: expected whole numbers from 0 up")
            first = fields[0] if first is None else first
            yield Arrival((fields[0] - first) / 1000, "", fields[1], fields[2], prefix=prefix)


def azure_functions(path: Path, seed: int = 0) -> Iterator[Arrival]:
    """invocations_per_function_md.anon.dNN.csv, with its function_durations_percentiles beside it if that is there.

    Invocations of a minute come at random moments in it. Each function's work is the average of its durations.
    """
    durations = _durations(
        path.with_name(path.name.replace("invocations_per_function_md", "function_durations_percentiles"))
    )
    functions: list[tuple[str, list[int]]] = []
    for where, row in _rows(path, COLUMNS["azure-functions"]):
        counts = [_whole(where, row, str(minute)) for minute in range(1, MINUTES + 1)]
        functions.append((row["HashFunction"], counts))
    rng = random.Random(seed)
    for minute in range(MINUTES):
        of_minute = [
            (60 * minute + 60 * rng.random(), name)
            for name, counts in functions
            for _ in range(counts[minute])
        ]
        for at, name in sorted(of_minute):
            yield Arrival(at, name, seconds=durations.get(name, 0.0))


READERS: Final[Mapping[str, Reader]] = {
    "azure-functions": azure_functions,
    "azure-llm": azure_llm,
    "burstgpt": burstgpt,
    "mooncake": mooncake,
}


def format_of(path: Path) -> str:
    """The one whose names its first line has; "" for none."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        line = file.readline(HEAD)
    try:
        row = json.loads(line)
    except ValueError:
        row = next(csv.reader([line]), [])
    names = set(row) if isinstance(row, dict | list) and all(isinstance(name, str) for name in row) else set()
    return next((form for form, columns in COLUMNS.items() if names.issuperset(columns)), "")


def _durations(path: Path) -> dict[str, float]:
    """Seconds, by function."""
    if not path.exists():
        return {}
    rows = _rows(path, ("HashFunction", "Average"))
    return {row["HashFunction"]: _number(where, row, "Average") / 1000 for where, row in rows}


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row with the words that name it."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from _checked(path, file, needed)


def _checked(path: Path, file: TextIO, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.DictReader(file)
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing:
        raise TraceError(
            f"{path}:1: no column {', '.join(missing)}; is it another format ({', '.join(READERS)})?"
        )
    for row in reader:
        where = f"{path}:{reader.line_num}"
        if any(row[name] is None for name in needed):
            raise TraceError(f"{where}: the row ends early")
        yield where, row


def _number(where: str, row: Mapping[str, Any], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e12:
        raise TraceError(f"{where}: {name} is {row[name]!r}, not a number from 0 up")
    return value


def _whole(where: str, row: Mapping[str, Any], name: str) -> int:
    value = _number(where, row, name)
    if value != int(value):
        raise TraceError(f"{where}: {name} is {row[name]!r}, not a whole number")
    return int(value)


def _date(where: str, text: str) -> datetime:
    """UTC where no zone is told. datetime knows six digits of a second; a whole second has no fraction."""
    try:
        at = datetime.fromisoformat(_FRACTION.sub(lambda found: f".{found[1][:6].ljust(6, '0')}", text))
    except ValueError as error:
        raise TraceError(f"{where}: TIMESTAMP is {text!r}, not a date and time") from error
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
