"""Which instances of a home go when a Schedule function asks for room for others of higher priority.

Home decides, because it alone knows what must stay: the revision's min-scale, and in a group the partner. The last
instance of a role is of use to the other role, so that it stays; unless the whole group may be at zero, then both
roles go together. The youngest goes first: it has done the least. Equal and higher priorities are never given up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kserve_ext.core.dispatch.fleet import Known
from kserve_ext.core.dispatch.revision_home import RevisionHome
from kserve_ext.core.ids import NodeID, RevisionKey


class Gone(NamedTuple):
    home: RevisionHome
    instance: Known


def chosen(
    homes: Mapping[RevisionKey, RevisionHome], key: RevisionKey, node: NodeID, count: int, priority: int
) -> list[Gone]:
    """At most `count` of the revision on the node, and with the last of a group what is useless without it."""
    home = homes.get(key)
    if home is None or not home.open or home.revision.priority >= priority:
        return []
    there = [k for k in home.fleet.known.values() if k.wanted and k.node == node]
    there.reverse()  # in order of their making: the youngest first
    going = there[: max(0, min(count, home.fleet.wanted - home.least))]
    partners = [h for h in homes.values() if h.revision.role != home.revision.role and h.fleet.wanted]
    same = sum(h.fleet.wanted for h in homes.values() if h.revision.role == home.revision.role)
    if partners and len(going) >= same:
        if any(h.least or h.revision.priority >= priority for h in partners):
            going = going[: same - 1]
        else:
            return [Gone(h, k) for h in (home, *partners) for k in h.fleet.known.values() if k.wanted]
    return [Gone(home, known) for known in going]
