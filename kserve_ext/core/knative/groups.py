"""Which revision prefills for a group of prefill and decode, among those that Knative keeps in service.

A group is joined by its name within a namespace. While a new prefill revision comes up there are two: the one that
has been ready before is given until the new one is ready, too. A decode instance asks an activator for the group, so
that the wait counts as demand on the prefill revision and wakes it. Pure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from kserve_ext.core.facts import Role
from kserve_ext.core.ids import RevisionKey

#: In the place of a revision's name, which can't have the colon.
PREFILL_OF: Final = "prefill:"


class Joined(NamedTuple):
    """What a revision says of itself."""

    role: Role = "unified"
    group: str = ""  # its name, in the revision's namespace
    in_service: bool = False  # traffic goes to it, or may at any time
    ready: bool = False  # it has been: also when it is at zero now
    created: str = ""  # RFC 3339, so that the later text is the later time


class Groups:
    def __init__(self) -> None:
        #: by namespace and group
        self._prefill: dict[tuple[str, str], dict[RevisionKey, Joined]] = {}
        self._where: dict[RevisionKey, tuple[str, str]] = {}

    def observe(self, key: RevisionKey, namespace: str, joined: Joined) -> None:
        self.forget(key)
        if joined.role == "prefill" and joined.group and joined.in_service:
            where = self._where[key] = namespace, joined.group
            self._prefill.setdefault(where, {})[key] = joined

    def forget(self, key: RevisionKey) -> None:
        where = self._where.pop(key, None)
        if where is not None:
            del self._prefill[where][key]
            if not self._prefill[where]:
                del self._prefill[where]

    def prefill_of(self, namespace: str, group: str) -> RevisionKey | None:
        known = self._prefill.get((namespace, group))
        if not known:
            return None
        return max(known, key=lambda key: (known[key].ready, known[key].created, key))
