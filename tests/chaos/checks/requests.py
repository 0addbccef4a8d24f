"""Invariant 2: each accepted request is answered exactly once, or refused with a status that says why.

Only the connections of a Dispatch function that was killed break. The stream of an engine that died ends with an
error event and without [DONE]. In a calm cluster with room nothing is refused for want of an instance.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator

from tests.chaos.digest import Digest, Process, Violation
from tests.chaos.history import Event

NAME = "2 requests"
#: 404 is of services that aren't (yet, or any more) there; 502 of an instance that broke off
KNOWN = (200, 404, 429, 502, 503, 504)


def check(digest: Digest) -> Iterator[Violation]:
    asked = [e for e in digest.events if e.what == "request"]
    shard_says: dict[str, list[Event]] = defaultdict(list)
    for e in digest.events:
        if e.what in ("accepted", "sent", "answered"):
            shard_says[e["request"]].append(e)
    by_instance = {p.instance: p for p in digest.processes}
    ended_at = sorted(p.ended for p in digest.processes)
    for e in asked:
        story = shard_says[e["request"]]
        for text in _wrong(digest, e, story, by_instance, ended_at):
            yield Violation(
                NAME, e.t, f"{e['request']} of {e['revision']} at {e['shard']}: {text}", (*story, e)
            )
    yield from _accounts(digest, shard_says, {e["request"]: e for e in asked})


def _wrong(
    digest: Digest, e: Event, story: list[Event], by_instance: dict[str, Process], ended_at: list[float]
) -> Iterator[str]:
    began, late = e["began"], digest.limits.late_s
    killed = digest.part_ended(e["shard"], began - late, e.t + late)
    accepted = any(s.what == "accepted" for s in story)
    if e["outcome"] == "silent":
        yield "was never answered"
    elif e["outcome"] == "broken" and "unasked" in e["why"]:
        yield f"an earlier request was answered twice: {e['why']}"
    elif e["outcome"] == "broken" and not killed:
        yield f"its connection broke, and its Dispatch function was not killed: {e['why']}"
    elif e["outcome"] == "unreached" and not killed and not _away(digest, e["shard"], began, e.t):
        yield f"nobody took it, and its Dispatch function was there: {e['why']}"
    if e["outcome"] != "answered":
        return
    status = e["status"]
    if status not in KNOWN:
        yield f"an answer that nobody should get: {status} {e['body']}"
    if status != 200 and not _reason(e):
        yield f"a refusal that doesn't say why: {status} {e['body']!r}"
    if status == 200 and e["stream"] is None:
        answer = _json(e["body"])
        if answer.get("request") != e["request"]:
            yield f"the answer of another request: {e['body']}"
        if not accepted:
            yield "answered, and never accepted by its Dispatch function"
    if e["stream"] is not None:
        yield from _stream(digest, e, story, by_instance)
    if status == 404 and not _changing(digest, e):
        yield f"its service was there, and was not found: {e['body']}"
    if status == 502:
        broke = any(began - 2 * late <= t <= e.t + 2 * late for t in ended_at)
        if not broke and not _out_of_reach(digest, began, e.t):
            yield f"no instance broke off: {e['body']}"
    if status in (503, 504) and _should_serve(digest, e):
        yield f"refused in a calm cluster with room: {status} {_reason(e)}"


def _stream(digest: Digest, e: Event, story: list[Event], by_instance: dict[str, Process]) -> Iterator[str]:
    said = e["stream"]
    if not said["in_order"] or said["done"] > 1 or said["after_done"]:
        yield f"events out of order, or after the end: {said}"
    if said["done"]:
        wanted = int(e["path"].partition("n=")[2].partition("&")[0])
        if said["events"] != wanted or said["errors"]:
            yield f"[DONE] of a stream that is not whole: {said}"
        return
    if not said["errors"]:
        yield f"a stream that ended without [DONE] and without an error event: {said}"
    sent = [by_instance.get(s["instance"]) for s in story if s.what == "sent"]
    slack = 2 * digest.limits.late_s
    died = any(p is not None and e["began"] - slack <= p.ended <= e.t + slack for p in sent)
    if not died and not _out_of_reach(digest, e["began"], e.t):
        yield f"an error event, and its instance lived on: {said}"


def _accounts(
    digest: Digest, shard_says: dict[str, list[Event]], asked: dict[str, Event]
) -> Iterator[Violation]:
    """By the Dispatch functions' own account: each that was accepted ends once, unless its process did."""
    for request, story in shard_says.items():
        ends = Counter(s.pid for s in story if s.what == "answered")
        for s in story:
            if s.what != "accepted":
                continue
            if ends[s.pid] > 1:
                yield Violation(NAME, s.t, f"{request} was ended {ends[s.pid]} times by {s.by}", tuple(story))
            killed = digest.part_ended(s.by, s.t, digest.end + digest.limits.late_s)
            if not ends[s.pid] and not killed and request in asked:
                yield Violation(NAME, s.t, f"{request} was accepted by {s.by} and never ended", tuple(story))


def _reason(e: Event) -> str:
    error = _json(e["body"]).get("error")
    if isinstance(error, dict):
        return str(error.get("message", ""))
    return e["body"] if '"message"' in e["body"] else ""


def _json(body: str) -> dict[str, object]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _away(digest: Digest, shard: str, start: float, end: float) -> bool:
    """It was not up all the time."""
    spans = digest.lives.get(shard, [])
    return not any(a + digest.limits.settle_s <= start and end <= b for _, a, b in spans[1:]) and not any(
        a <= start and end <= b for _, a, b in spans[:1]
    )


def _changing(digest: Digest, e: Event) -> bool:
    """Its service had only just come, or was going; or news of it could not reach the Dispatch function."""
    service = digest.services.get(e["revision"])
    if service is None or e.t > service.deleted - 0.1:
        return True
    known_by = service.applied + digest.limits.routed_s
    return e["began"] < known_by or not digest.calm(service.applied, e.t)


def _out_of_reach(digest: Digest, start: float, end: float) -> bool:
    """Some instance was paused, or cut off with its node."""
    return any(
        (f["kind"].endswith("-instance") or f["kind"] == "cut")
        and f.t <= end
        and start <= over + digest.limits.settle_s
        for f, over in digest.faults
    )


def _should_serve(digest: Digest, e: Event) -> bool:
    """Nothing stood in its way from its beginning to its end, and there was room for its instance."""
    service = digest.services.get(e["revision"])
    if service is None or service.hog or e.t > service.deleted - 0.1:
        return False
    if not digest.calm(max(service.applied, e["began"]) - 1.0, e.t):
        return False
    hogs = [s for s in digest.services.values() if s.hog]
    if any(s.applied <= e.t and e["began"] <= s.deleted + digest.limits.settle_s for s in hogs):
        return False
    return bool(e["began"] > service.applied + digest.limits.routed_s)
