"""The last requests of this Dispatch function, for `galaxy explain`: marks with times, in a ring of fixed size.

Hot on the request path: one list append per mark; it is laid out only when somebody asks.
"""

from __future__ import annotations

from collections import OrderedDict
from time import time
from typing import Any, Final

from kserve_ext.core.dispatch.affinity import Keys
from kserve_ext.core.ids import InstanceID, RevisionKey

KEPT: Final = 1000


class Record:
    """One request: marks are (name, unix seconds, detail)."""

    __slots__ = (
        "cold",
        "held",
        "held_bytes",
        "instance",
        "keys",
        "marks",
        "outcome",
        "request_id",
        "revision",
    )

    def __init__(self, request_id: bytes, revision: RevisionKey, held_bytes: int) -> None:
        self.request_id = request_id
        self.revision = revision
        self.held_bytes = held_bytes
        self.instance = InstanceID("")
        self.outcome = ""
        self.cold = False
        self.held = False
        self.keys = Keys()
        self.marks: list[tuple[str, float, str]] = [("arrived", time(), "")]

    def mark(self, name: str, detail: str = "") -> None:
        self.marks.append((name, time(), detail))

    def body(self) -> dict[str, Any]:
        return {
            "id": self.request_id.decode("latin-1"),
            "revision": self.revision,
            "instance": self.instance,
            "outcome": self.outcome,
            "cold": self.cold,
            "held_bytes": self.held_bytes,
            "marks": self.marks,
        }


class Requests:
    """The newest KEPT records, by request id. A client that repeats an id replaces its older record."""

    def __init__(self) -> None:
        self._records: OrderedDict[bytes, Record] = OrderedDict()

    def open(self, request_id: bytes, revision: RevisionKey, held_bytes: int) -> Record:
        record = Record(request_id, revision, held_bytes)
        self._records.pop(request_id, None)
        self._records[request_id] = record
        if len(self._records) > KEPT:
            self._records.popitem(last=False)
        return record

    def find(self, request_id: str) -> dict[str, Any]:
        record = self._records.get(request_id.encode("latin-1", "replace"))
        return record.body() if record is not None else {}
