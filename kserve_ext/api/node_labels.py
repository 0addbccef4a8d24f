"""Labels of nodes as people write them: KEY=VALUE,KEY=VALUE; in `galaxy up` for every node, or after NODE: for one.

Keys and values have the form that Kubernetes asks of labels. Placement goes by topology.kubernetes.io/zone and
kserve-galaxy.io/rail (docs/placement.md); any other is there for nodeSelector.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from kserve_ext.core.facts import Label

HOSTNAME: Final = "kubernetes.io/hostname"
_PART: Final = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_KEY: Final = re.compile(rf"([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_PART}")
_VALUE: Final = re.compile(rf"({_PART})?")


def read_labels(text: str) -> tuple[Label, ...]:
    """In order of key; ValueError says which is wrong."""
    labels: dict[str, str] = {}
    for item in filter(None, text.split(",")):
        key, sep, value = item.partition("=")
        if not sep or not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
            raise ValueError(f"{item!r}: write KEY=VALUE as labels of Kubernetes are, e.g. zone=a")
        if key == HOSTNAME:
            raise ValueError(f"{item!r}: {key} is the name of each node, and stays so")
        if key in labels:
            raise ValueError(f"{key} is given twice")
        labels[key] = value
    return tuple(sorted(labels.items()))


def by_node(texts: Iterable[str], nodes: Iterable[str]) -> dict[str, dict[str, str]]:
    """Of each node that has any. "KEY=VALUE,..." is for all, "NODE:KEY=VALUE,..." for one; the later wins."""
    found: dict[str, dict[str, str]] = {node: {} for node in nodes}
    for text in texts:
        node, sep, rest = text.partition(":")
        if sep and node not in found:
            raise ValueError(f"{text!r}: there is no node {node}; they are {', '.join(found)}")
        for name in (node,) if sep else tuple(found):
            found[name].update(read_labels(rest if sep else text))
    return {node: labels for node, labels in found.items() if labels}
