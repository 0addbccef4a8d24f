"""A ConfigMap as it is in force: what it says where all of it can be used, else what it said before.

A process that starts has no before: it ends, as Knative's do. The log names each key that is wrong, and what would be
right. What a ConfigMap means is kserve_ext/api's; when it is looked at, its watcher's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from kserve_ext.api.problems import Findings, Problem

log = logging.getLogger(__name__)

T = TypeVar("T")


class BadConfig(Exception):
    """A process that starts has no last good one: the message names the ConfigMap, and what would be right."""


def in_force(
    name: str, data: Mapping[str, str], read: Callable[[Mapping[str, str], Findings], T], last: T
) -> tuple[T, bool]:
    """What holds from here on, and whether `data` was taken. `name`: of the ConfigMap, for the log."""
    value, problems = _read(name, data, read)
    for problem in problems:
        log.error("ConfigMap %s: %s; the last good one stays in force", name, problem)
    return (last, False) if problems else (value, True)


def at_start(name: str, data: Mapping[str, str], read: Callable[[Mapping[str, str], Findings], T]) -> T:
    """What it says, or BadConfig: whoever rolls out a mistake shall find the former process still serving."""
    value, problems = _read(name, data, read)
    if problems:
        raise BadConfig(f"ConfigMap {name}: {'; '.join(map(str, problems))}")
    return value


def _read(
    name: str, data: Mapping[str, str], read: Callable[[Mapping[str, str], Findings], T]
) -> tuple[T, list[Problem]]:
    findings = Findings()
    value = read(data, findings)
    for warning in findings.warnings:
        log.info("ConfigMap %s: %s", name, warning)
    return value, findings.problems
