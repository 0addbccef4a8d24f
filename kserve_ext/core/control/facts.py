"""The nouns of the elastic control plane: which functions scale, within which bounds, and how busy one is.

A function that the controller starts is an instance of a revision of its own, one a kind, whose home is the
controller: nodes admit, start, watch, drain and report it as they do any other instance.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

from kserve_ext.core.facts import Kind, Resources
from kserve_ext.core.ids import FunctionID, NodeID, RevisionKey

ScaledKind = Literal["dispatch", "schedule", "cluster_mgr"]
SCALED: Final[tuple[ScaledKind, ...]] = get_args(ScaledKind)

#: No namespace of Kubernetes can be called so: nobody's service is mistaken for a function.
NAMESPACE: Final = "kserve-galaxy.io"
#: What one function counts in its node's ledger: a Python process, with its core half used in the mean.
NEEDS: Final = Resources(cpu_milli=500, memory_mib=128)
#: Work is divided among these by the view. To a Dispatch function clients come by a shared port, and its leased slots
#: count as long as it is in the view: it drains by listening no more, and then leaves.
ROUTED_BY_VIEW: Final[frozenset[Kind]] = frozenset(("schedule", "cluster_mgr"))


def revision_of(kind: ScaledKind) -> RevisionKey:
    return RevisionKey(f"{NAMESPACE}/{kind}")


def kind_of(key: RevisionKey) -> ScaledKind | None:
    """Which functions are instances of this revision; None for anybody's service."""
    namespace, _, name = key.partition("/")
    return scaled(name) if namespace == NAMESPACE else None


def scaled(kind: str) -> ScaledKind | None:
    """Kinds of which there may be more or fewer."""
    return next((known for known in SCALED if known == kind), None)


class Bounds(NamedTuple):
    """How many functions of a kind there may be. The first `min` are started by whoever starts the cluster."""

    min: int = 1
    max: int = 1


class Reading(NamedTuple):
    """How loaded one function says it is."""

    srps: float = 0.0  # scaling requests a second
    busy: float = 0.0  # share of one core
    queue_age_s: float = 0.0


class Room(NamedTuple):
    """A node that functions may be started on."""

    node: NodeID
    addr: str
    free: Resources


class Answer(NamedTuple):
    """To an application: how many more functions there will be, and why, or why not more."""

    granted: int
    reason: str


class Decision(NamedTuple):
    """The last change of a kind's number, for people."""

    at: float
    wanted: int
    reason: str


class Owned(NamedTuple):
    """A function that the controller has started, as the store keeps it."""

    id: FunctionID
    kind: ScaledKind
    node: NodeID
    draining: bool = False


class Kept(NamedTuple):
    """What must outlive the controller: how many it wants of each kind, and what it has started."""

    wanted: tuple[tuple[ScaledKind, int], ...] = ()
    owned: tuple[Owned, ...] = ()
    number: int = 0  # the last one that a function was named by
