"""Invariant 5: with the state store down, requests keep flowing and instances keep starting.

The store lives in the controller's process, or in Redis: while nothing else is wrong, a request for a service that
was known before is answered, from zero, too.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.digest import Digest, Span, Violation

NAME = "5 store down"


def check(digest: Digest) -> Iterator[Violation]:
    for down in _down_alone(digest):
        for e in digest.events:
            if e.what != "request" or not down[0] <= e["began"] < down[1]:
                continue
            service = digest.services.get(e["revision"])
            if service is None or service.hog:
                continue
            if e["began"] < service.applied + digest.limits.routed_s or e.t > service.deleted - 0.1:
                continue
            took = e.t - e["began"]
            well = e["outcome"] == "answered" and e["status"] in (200, 429)
            if not well or (
                "stream" not in e["path"] and took > digest.limits.answered_s and e["status"] == 200
            ):
                text = f"{e['request']} of {e['revision']}: {e['outcome']} {e['status']} after {took:.1f} s"
                yield Violation(NAME, e.t, f"{text}, with only the store down: {e['body']}{e['why']}", (e,))


def _down_alone(digest: Digest) -> list[Span]:
    """From when the store was away for a moment until it is back, where nothing else was wrong then."""
    found = []
    for f, over in digest.faults:
        away = f["target"].startswith("controller") or f["target"] in ("leader", "store")
        if not away or f["kind"] not in ("kill", "pause"):
            continue
        others = [
            g
            for g, g_over in digest.faults
            if g is not f and g.t < over + 15.0 and g_over + digest.limits.settle_s > f.t
        ]
        hog = any(
            s.hog and s.applied < over and f.t < s.deleted + digest.limits.settle_s
            for s in digest.services.values()
        )
        if not others and not hog:
            found.append((f.t, over))
    return found
