"""A strict check of YAML documents against a table of fields: the API server's structural schema, in small.

Finds every problem in one pass: an unknown field (with its full path and the nearest known field), a wrong type,
a missing required field. A field that is known but not acted on in the embedded cluster is accepted with a
warning. The tables are in inference_service.py and serving_runtime.py; typing of the result is theirs, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from kserve_ext.api import quantities
from kserve_ext.api.problems import Findings, did_you_mean

Check = Callable[[object, str, Findings], None]


@dataclass(frozen=True, slots=True)
class Object:
    """A mapping with these fields and no others."""

    fields: Mapping[str, Check | Object]
    required: tuple[str, ...] = ()

    def __call__(self, value: object, path: str, findings: Findings) -> None:
        if not isinstance(value, dict):
            findings.problem(
                path, "must be a mapping of fields", f"fields are {', '.join(self.fields)}", value
            )
            return
        for name, item in value.items():
            where = f"{path}.{name}" if path else str(name)
            check = self.fields.get(name)
            if check is None:
                findings.problem(where, "unknown field", did_you_mean(str(name), self.fields))
            elif item is not None:
                check(item, where, findings)
        for name in self.required:
            if value.get(name) is None:
                findings.problem(f"{path}.{name}" if path else name, "is missing", "add it")


def text(value: object, path: str, findings: Findings) -> None:
    if not isinstance(value, str):
        findings.problem(path, "must be a text", "put the value in quotes", value)


def integer(low: int, high: int = 2**31 - 1) -> Check:
    def check(value: object, path: str, findings: Findings) -> None:
        top = "" if high == 2**31 - 1 else f" and at most {high}"
        remedy = f"give an integer of at least {low}{top}"
        if isinstance(value, bool) or not isinstance(value, int):
            findings.problem(path, "must be an integer", remedy, value)
        elif value < low:
            findings.problem(path, f"must be at least {low}", remedy, value)
        elif value > high:
            findings.problem(path, f"must be at most {high}", remedy, value)

    return check


def boolean(value: object, path: str, findings: Findings) -> None:
    if not isinstance(value, bool):
        findings.problem(path, "must be true or false", "write it without quotes", value)


def quantity(value: object, path: str, findings: Findings) -> None:
    try:
        amount = quantities.parse(value)
    except ValueError:
        findings.problem(path, "is not a quantity", quantities.FORMS, value)
        return
    if amount < 0:
        findings.problem(path, "must not be negative", quantities.FORMS, value)


def anything(value: object, path: str, findings: Findings) -> None:
    """Known to Kubernetes; what is in it is not looked at."""


def one_of(*choices: str) -> Check:
    def check(value: object, path: str, findings: Findings) -> None:
        if value not in choices:
            findings.problem(path, "not an allowed value", f"use one of {', '.join(choices)}", value)

    return check


def items(check: Check | Object) -> Check:
    def check_all(value: object, path: str, findings: Findings) -> None:
        if not isinstance(value, list):
            findings.problem(path, "must be a list", "write each entry on a line that starts with -", value)
            return
        for number, item in enumerate(value):
            check(item, f"{path}[{number}]", findings)

    return check_all


def mapping(check: Check | Object) -> Check:
    """A mapping with free keys."""

    def check_all(value: object, path: str, findings: Findings) -> None:
        if not isinstance(value, dict):
            findings.problem(path, "must be a mapping", "write KEY: VALUE", value)
            return
        for key, item in value.items():
            where = f"{path}[{key}]"
            if not isinstance(key, str):
                findings.problem(where, "the key must be a text", "put it in quotes", key)
            check(item, where, findings)

    return check_all


def ignored(check: Check | Object = anything) -> Check:
    """Known to KServe, without effect in the embedded cluster: accepted with a warning."""

    def check_and_warn(value: object, path: str, findings: Findings) -> None:
        findings.warn(f"{path}: has no effect in the embedded cluster")
        check(value, path, findings)

    return check_and_warn


def refused(what: str, remedy: str) -> Check:
    """Known to KServe, and leaving it out would change what the object means."""

    def check(value: object, path: str, findings: Findings) -> None:
        findings.problem(path, what, remedy)

    return check


texts: Final = items(text)
labels: Final = mapping(text)


def document(api_version: str, spec: Object) -> Object:
    """A whole object of one kind."""
    fields: dict[str, Check | Object] = {
        "apiVersion": one_of(api_version),
        "kind": text,
        "metadata": anything,
        "spec": spec,
        "status": anything,
    }
    return Object(fields, required=("apiVersion", "metadata", "spec"))
