"""Which revisions adopt their pods now, and which in a moment.

An adoption is a few writes, and looks at a ReplicaSet until its controller has acted. All at once, the looks of four
hundred take the API server from the controllers that are waited for: what takes 30 s in order took over two minutes
(docs/decisions/0037). Nobody's request waits for any of it. First come, first served.

The line of core/knative/waves.py looks the same and shares nothing with it. There whoever is named may come, and
has a place once it does, until there is a pod of it or its time is over; then it counts for the burst yet. Here
whoever is named has its place, so that one that never comes loses it like one that is stuck, and is forgotten. What
would be left to share is a dict in order.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

#: As many as are woken at a time the plain way (core/knative/waves.py).
PLACES: Final = 16
#: A place that nobody has given back by then is free all the same.
PLACE_S: Final = 15.0


class Turns:
    def __init__(self, places: int = PLACES) -> None:
        self._places = places
        #: By revision: until when it has its place; deadlines only rise.
        self._under_way: dict[str, float] = {}
        self._line: dict[str, None] = {}  # disjoint with the above

    @property
    def waiting(self) -> int:
        return len(self._line)

    def ask(self, key: str, now: float) -> bool:
        """Whether it is its turn. If not, it is in line, and named by `free` once it is."""
        if key not in self._under_way:
            self._line.setdefault(key)
            self._admit(now, [key] if next(iter(self._line)) == key else [])
        return key in self._under_way

    def done(self, key: str) -> None:
        """It has adopted, or has nothing to adopt any more."""
        self._under_way.pop(key, None)
        self._line.pop(key, None)

    def free(self, now: float) -> list[str]:
        """Those whose turn it is from now on."""
        return self._admit(now, list(islice(self._line, self._places)))

    def _admit(self, now: float, keys: list[str]) -> list[str]:
        for key in [key for key, until in self._under_way.items() if until <= now]:
            del self._under_way[key]
        admitted = keys[: max(0, self._places - len(self._under_way))]
        for key in admitted:
            del self._line[key]
            self._under_way[key] = now + PLACE_S
        return admitted
