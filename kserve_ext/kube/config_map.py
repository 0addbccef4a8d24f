"""A ConfigMap as it is in force: what it says where all of it can be used, else what it said before.

The log names each key that is wrong, and what would be right. What a ConfigMap means is kserve_ext/api's; when it is
looked at, its watcher's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from kserve_ext.api.problems import Findings

log = logging.getLogger(__name__)

T = TypeVar("T")


def in_force(
    name: str, data: Mapping[str, str], read: Callable[[Mapping[str, str], Findings], T], last: T
) -> tuple[T, bool]:
    """What holds from here on, and whether `data` was taken. `name`: of the ConfigMap, for the log."""
    findings = Findings()
    value = read(data, findings)
    for warning in findings.warnings:
        log.info("ConfigMap %s: %s", name, warning)
    for problem in findings.problems:
        log.error("ConfigMap %s: %s; the last good one stays in force", name, problem)
    return (value, True) if findings else (last, False)
