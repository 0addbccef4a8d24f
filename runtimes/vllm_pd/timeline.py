"""When what happened to a request inside this instance, for `galaxy explain` and the response headers.

A bounded ring: the oldest request is forgotten first. Times are unix seconds, because marks of several
processes are laid side by side. Never holds prompts or answers.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

CAPACITY = 1000


class Timeline:
    """One request: its marks in order, and how its KV came to be (`transfer`, "" while undecided).

    `kv` says the same in parts (rung, bytes, tokens, blocks, ms, reason), `prefill` which instance was asked.
    """

    __slots__ = ("_clock", "_overlap", "id", "kv", "marks", "prefill", "transfer")

    def __init__(self, request_id: str, clock: Callable[[], float] = time.time) -> None:
        self.id = request_id
        self.marks: list[tuple[str, float, str]] = []
        self.transfer = ""
        self.kv: dict[str, Any] = {}
        self.prefill: dict[str, Any] = {}
        self._overlap: float | None = None
        self._clock = clock

    def mark(self, name: str, detail: str = "", at: float | None = None) -> None:
        self.marks.append((name, self._clock() if at is None else at, detail))

    def when(self, name: str) -> float | None:
        """Unix seconds of the first mark of this name."""
        return next((at for known, at, _ in self.marks if known == name), None)

    def mark_once(self, name: str, detail: str = "") -> None:
        if self.when(name) is None:
            self.mark(name, detail)

    def local(self, reason: str, rung: str = "") -> None:
        """The prompt is computed by this engine."""
        self.kv = {"rung": "none", "reason": reason}
        self.transfer = f"none;reason={reason}"
        if rung:
            self.kv["tried"] = rung
            self.transfer += f";tried={rung}"

    def transferred(self, rung: str, size: int, tokens: int, blocks: int, ms: float) -> None:
        """The prompt's KV has come from `prefill`."""
        self.kv = {"rung": rung, "bytes": size, "tokens": tokens, "blocks": blocks, "ms": round(ms, 3)}
        self.transfer = f"{rung};bytes={size};tokens={tokens};ms={ms:.2f}"
        self._add_overlap()

    def overlapped(self, share: float) -> None:
        """In this share of the time that the transfer took, prefill was still computing. Before or after the rest."""
        self._overlap = share
        if "bytes" in self.kv and "overlap" not in self.kv:
            self._add_overlap()

    def _add_overlap(self) -> None:
        if self._overlap is not None:
            self.kv["overlap"] = round(self._overlap, 3)
            self.transfer += f";overlap={self._overlap:.2f}"

    def facts(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "marks": sorted(self.marks, key=lambda mark: mark[1]),
            "kv": self.kv,
            "prefill": self.prefill,
            "header": self.transfer,
        }


class Timelines:
    """The last requests, by id. One that comes again, which is for clients to say, names the newest."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._by_id: OrderedDict[str, Timeline] = OrderedDict()

    def open(self, request_id: str) -> Timeline:
        timeline = self._by_id[request_id] = Timeline(request_id)
        self._by_id.move_to_end(request_id)
        while len(self._by_id) > self._capacity:
            self._by_id.popitem(last=False)
        return timeline

    def get(self, request_id: str) -> Timeline | None:
        return self._by_id.get(request_id)

    def facts(self) -> dict[str, Any]:
        """All of them by request id: what an instance leaves behind when it ends."""
        return {request_id: timeline.facts() for request_id, timeline in self._by_id.items()}


#: The timeline of the request that the running task serves.
CURRENT: ContextVar[Timeline | None] = ContextVar("galaxy_timeline", default=None)
