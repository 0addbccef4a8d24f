"""No part dies but by the schedule, and no task of one ends in an error that nobody expected."""

from __future__ import annotations

import signal
from collections.abc import Iterator

from tests.chaos.digest import Digest, Violation


def check(digest: Digest) -> Iterator[Violation]:
    finished = next((e.t for e in digest.events if e.what == "finished"), float("inf"))
    for e in digest.events:
        if e.what == "died" and e["status"] != signal.SIGKILL and e.t < finished:
            text = f"{e['part']} (pid {e['of']}) ended by itself, wait status {e['status']}: see its log"
            yield Violation("0 parts", e.t, text, (e,))
        elif e.what == "raised":
            yield Violation("0 parts", e.t, f"{e['part']} logged an error that nobody expected: {e['error']}")
