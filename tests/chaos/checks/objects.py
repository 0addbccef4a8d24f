"""What was acknowledged stays: an applied service is served, by its newest revision; a deleted one isn't known.

And the objects process of a calm cluster answers. What comes of an object is promised of a calm cluster; that it is
there at all, of any that is calm again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.digest import Digest, Violation
from tests.chaos.history import Event

NAME = "7 objects"
WORDS = ("applied", "removing", "removed")


def check(digest: Digest) -> Iterator[Violation]:
    told: dict[str, list[Event]] = defaultdict(list)
    tried: dict[str, list[Event]] = defaultdict(list)
    for e in digest.events:
        if e.what in WORDS:
            told[e["revision"]].append(e)
        elif e.what == "admin":
            tried[e["revision"]].append(e)
            if e["status"] not in (200, 201, 404) and digest.calm(e["began"], e.t):
                text = f"{e['method']} of {e['revision']} in a calm cluster: {e['status']} {e['why']}"
                yield Violation(NAME, e.t, text, (e,))
    for e in digest.events:
        if e.what == "request" and e["revision"] in told:
            wrong = _wrong(digest, e, told[e["revision"]], tried[e["revision"]])
            if wrong:
                yield Violation(
                    NAME, e.t, f"{e['request']} of {e['revision']}: {wrong}", (*told[e["revision"]], e)
                )


def _wrong(digest: Digest, e: Event, told: list[Event], tried: list[Event]) -> str:
    """`told`: what was done to its object; `tried`: every call about it, also those that weren't answered."""
    limits = digest.limits
    before = [x for x in told if x.t < e["began"]]
    if not before or e["outcome"] != "answered":
        return ""
    last = before[-1]
    if any(last.t < x.t and x["began"] < e.t for x in tried):
        return ""  # something else may have been done to it already
    if (
        not digest.calm(max(last.t, e["began"] - limits.routed_s), e.t)
        or e["began"] < last.t + limits.routed_s
    ):
        return ""
    if last.what == "removed":
        return f"it was deleted, and is answered {e['status']}" if e["status"] != 404 else ""
    if last.what != "applied":
        return ""
    if e["status"] == 404:
        return f"it was applied {e['began'] - last.t:.1f} s ago, and is not found"
    if e["status"] == 200 and e["began"] > last.t + limits.start_s:
        instance = json.loads(e["body"])["instance"]
        number = int(instance.split("-")[-2])
        if number < last["number"]:
            return f"served by {instance}, and revision {last['number']} was made {e['began'] - last.t:.1f} s ago"
    return ""
