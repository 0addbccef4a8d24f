"""Which function has which node: shares as even as whole nodes allow, and as few nodes as possible change hands.

Rendezvous hashing says whom a node prefers; a quota bounds what a function gets: no two differ by more than one node.
Who had a node keeps it, so that only what the quota forces moves: when one function joins N others, floor(M/(N+1)) of
M nodes; when one leaves, its own; when a node leaves, one more at most. The controller computes this with each view
and the view carries it (View.partitions, View.shares), so a member reads its nodes and hashes nothing. A view without
it is divided from scratch, by everybody alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from kserve_ext.core import rendezvous
from kserve_ext.core.facts import Kind, View
from kserve_ext.core.ids import FunctionID, NodeID
from kserve_ext.core.rendezvous import Ranks

Owners = Mapping[NodeID, FunctionID]


def owners(view: View, kind: Kind) -> dict[NodeID, FunctionID]:
    """The function of this kind (schedule, or cluster_mgr) that has each node of the view; {} if there is none."""
    nodes = [NodeID(m.id) for m in view.of("node")]
    functions = [m.id for m in view.of(kind)]
    carried = view.partitions if kind == "schedule" else view.shares
    if len(carried) != len(nodes) or any(index >= len(functions) for index in carried):
        return divide(nodes, functions)
    return {node: functions[index] for node, index in zip(nodes, carried, strict=True)}


def owner(view: View, kind: Kind, node: NodeID) -> FunctionID | None:
    """Who has this node: while the view is without it, whom it prefers; None if there is no such function."""
    return owners(view, kind).get(node) or rendezvous.owner(node, [m.id for m in view.of(kind)])


def carried(view: View, partitions: Owners, shares: Owners) -> View:
    """The view with what divide() said: for each of its nodes the index of its function among those of the kind."""
    return view._replace(
        partitions=_indices(view, "schedule", partitions), shares=_indices(view, "cluster_mgr", shares)
    )


def divide(
    nodes: Iterable[NodeID], functions: Iterable[FunctionID], before: Owners | None = None
) -> dict[NodeID, FunctionID]:
    """The owner of each node, in order of node id; `before` is who had it. Orders of the arguments don't matter."""
    members, known = sorted(functions), sorted(nodes)
    if not members:
        return {}
    held = _held(known, members, before or {})
    every, more = divmod(len(known), len(members))
    fuller = sorted(members, key=lambda function: -len(held[function]))[:more]
    quota = dict.fromkeys(members, every) | dict.fromkeys(fuller, every + 1)
    ranks = Ranks(members)
    owned: dict[NodeID, FunctionID] = {}
    for function, mine in held.items():
        if len(mine) > quota[function]:
            mine.sort(key=lambda node: ranks.rank(node, function), reverse=True)
            del mine[quota[function] :]
        owned.update(dict.fromkeys(mine, function))
    room = {f: quota[f] - len(held[f]) for f in members if quota[f] > len(held[f])}
    for node in known:
        if node not in owned:
            function = owned[node] = ranks.first(node, room)
            room[function] -= 1
            if not room[function]:
                del room[function]
    return {node: owned[node] for node in known}


def moved(before: Owners, after: Owners) -> list[NodeID]:
    """The nodes that have another owner, of those that are in both."""
    return [node for node, function in after.items() if node in before and before[node] != function]


def loads(owned: Owners, functions: Sequence[FunctionID]) -> list[int]:
    """How many nodes each function has."""
    count = Counter(owned.values())
    return [count[function] for function in functions]


def _held(
    nodes: Sequence[NodeID], members: Sequence[FunctionID], before: Owners
) -> dict[FunctionID, list[NodeID]]:
    held: dict[FunctionID, list[NodeID]] = {function: [] for function in members}
    for node in nodes:
        mine = held.get(before[node]) if node in before else None
        if mine is not None:
            mine.append(node)
    return held


def _indices(view: View, kind: Kind, owned: Owners) -> tuple[int, ...]:
    index = {m.id: k for k, m in enumerate(view.of(kind))}
    return tuple(index[owned[NodeID(m.id)]] for m in view.of("node")) if index else ()
