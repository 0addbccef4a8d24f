"""A profile in pprof's protobuf, as `go tool pprof` and every viewer of its kind reads it.

A sample is a stack, its values in the order of the profile's kinds, and labels. Strings, functions and locations are
written once each; a location is a line of a function. Not compressed here: viewers take it with gzip or without. In
the specification: github.com/google/pprof/proto/profile.proto.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from kserve_ext.wire.protobuf import message, number, packed, text

_NONE: Final[Mapping[str, str]] = {}


class Kind(NamedTuple):
    """What a value counts, and in which unit: ("cpu", "nanoseconds")."""

    name: str
    unit: str


class Place(NamedTuple):
    """A line of a function, and the line that the function begins with (0 = not known)."""

    function: str
    file: str
    line: int
    first_line: int = 0


class Sample(NamedTuple):
    stack: tuple[Place, ...]  # where it is first, then who called that
    values: tuple[int, ...]
    labels: Mapping[str, str] = _NONE


class Profile(NamedTuple):
    kinds: tuple[Kind, ...]  # the last is what viewers show first
    samples: Sequence[Sample]
    at_ns: int  # since 1970
    duration_ns: int = 0
    period: int = 0  # of what the last kind counts, between two samples
    comment: str = ""


def encode(profile: Profile) -> bytes:
    """A perftools.profiles.Profile."""
    tables = _Tables()
    kinds = [tables.kind(kind) for kind in profile.kinds]
    parts = [message(1, kind) for kind in kinds]
    parts += [message(2, tables.sample(sample)) for sample in profile.samples]
    comment = tables.string(profile.comment)
    parts += [message(4, location) for location in tables.locations]
    parts += [message(5, function) for function in tables.functions]
    parts += [text(6, string) for string in tables.strings]
    parts += [number(9, profile.at_ns), number(10, profile.duration_ns)]
    if profile.period:
        parts += [message(11, kinds[-1]), number(12, profile.period)]
    if comment:
        parts.append(number(13, comment))
    return b"".join(parts)


class _Tables:
    """What samples refer to by number: strings from 0, functions and locations from 1."""

    def __init__(self) -> None:
        self.strings: dict[str, int] = {"": 0}
        self.functions: list[bytes] = []
        self.locations: list[bytes] = []
        self._functions: dict[tuple[str, str, int], int] = {}
        self._locations: dict[Place, int] = {}

    def string(self, value: str) -> int:
        return self.strings.setdefault(value, len(self.strings))

    def kind(self, kind: Kind) -> bytes:
        return number(1, self.string(kind.name)) + number(2, self.string(kind.unit))

    def sample(self, sample: Sample) -> bytes:
        parts = [packed(1, map(self._location, sample.stack)), packed(2, sample.values)]
        for name, value in sample.labels.items():
            parts.append(message(3, number(1, self.string(name)) + number(2, self.string(value))))
        return b"".join(parts)

    def _location(self, place: Place) -> int:
        found = self._locations.get(place)
        if found is None:
            found = self._locations[place] = len(self._locations) + 1
            line = number(1, self._function(place)) + number(2, place.line)
            self.locations.append(number(1, found) + message(4, line))
        return found

    def _function(self, place: Place) -> int:
        key = (place.function, place.file, place.first_line)
        found = self._functions.get(key)
        if found is None:
            found = self._functions[key] = len(self._functions) + 1
            name, file = self.string(place.function), self.string(place.file)
            fields = number(1, found) + number(2, name) + number(3, name) + number(4, file)
            self.functions.append(fields + number(5, place.first_line))
        return found
