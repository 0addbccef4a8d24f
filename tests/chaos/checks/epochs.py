"""Invariant 6: epochs only grow, and an action under an old epoch never overrides a newer one.

Who obeys remembers: a node per revision, a shard per revision. One home per revision and term. An instance id is one
process, ever.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.digest import Digest, Violation, length, minus

NAME = "6 epochs"


def check(digest: Digest) -> Iterator[Violation]:
    yield from _published(digest)
    yield from _obeyed_by_nodes(digest)
    yield from _obeyed_by_shards(digest)
    yield from _one_home(digest)
    yield from _two_at_once(digest)
    yield from _one_process(digest)


def _published(digest: Digest) -> Iterator[Violation]:
    newest = -1
    seen: dict[tuple[str, int], int] = {}
    for e in digest.events:
        if e.what == "published":
            if e["epoch"] <= newest:
                text = f"epoch {e['epoch']} was published after {newest}"
                yield Violation(NAME, e.t, text, (*digest.near(e.t - 10, e.t, "published"), e))
            newest = max(newest, e["epoch"])
        elif e.what == "view":
            if e["epoch"] < seen.get((e.by, e.pid), -1):
                yield Violation(NAME, e.t, f"{e.by} went back to the view of epoch {e['epoch']}", (e,))
            seen[e.by, e.pid] = e["epoch"]


def _obeyed_by_nodes(digest: Digest) -> Iterator[Violation]:
    """Within the life of an agent; the next one begins with what it found and with its first view."""
    obeyed: dict[tuple[str, int, str], int] = defaultdict(int)
    for e in digest.events:
        if not e.by.startswith("node"):
            continue
        if e.what == "start" and not e["refused"]:
            asked = [(e["revision"], e["epoch"], f"started {e['instance']}")]
        elif e.what == "stop" and e["revision"] and not e["stale"]:
            asked = [(e["revision"], e["epoch"], f"stopped {e['instance']}")]
            key = (e.by, e.pid, e["revision"])
            if e["epoch"] < obeyed[key]:
                yield _stale(digest, e.t, e.by, asked[0], obeyed[key])
            continue  # a stop is obeyed, and doesn't name a home
        elif e.what == "recall" and e["obeyed"]:
            asked = [(r, e["epoch"], "was recalled") for r in e["revisions"]]
        else:
            continue
        for revision, epoch, what in asked:
            key = (e.by, e.pid, revision)
            if epoch < obeyed[key]:
                yield _stale(digest, e.t, e.by, (revision, epoch, what), obeyed[key])
            obeyed[key] = max(obeyed[key], epoch)


def _stale(digest: Digest, t: float, node: str, asked: tuple[str, int, str], newest: int) -> Violation:
    revision, epoch, what = asked
    text = f"{node} {what} of {revision} under epoch {epoch}, and had obeyed {newest}"
    return Violation(NAME, t, text, digest.near(t - 10, t, revision))


def _obeyed_by_shards(digest: Digest) -> Iterator[Violation]:
    obeyed: dict[tuple[str, int, str], tuple[int, int]] = {}
    for e in digest.events:
        if e.what == "obeyed":
            key, now = (e.by, e.pid, e["revision"]), (e["term"], e["seq"])
            before = obeyed.get(key, (0, 0))
            if now[0] < before[0]:
                text = f"{e.by} obeyed a Grant of term {now[0]} for {e['revision']} after one of {before[0]}"
                yield Violation(NAME, e.t, text, digest.near(e.t - 10, e.t, e["revision"]))
            obeyed[key] = max(before, now)


def _one_home(digest: Digest) -> Iterator[Violation]:
    """No two Dispatch functions grant or place for one revision under one term."""
    homes: dict[tuple[str, int], tuple[str, int]] = {}
    told = set()
    for e in digest.events:
        if e.what == "grant" and e["term"]:
            key, who = (e["revision"], e["term"]), (e.by, e.pid)
            first = homes.setdefault(key, who)
            if first != who and key not in told:
                told.add(key)
                text = f"{e['revision']} has two homes in term {e['term']}: {first[0]} and {who[0]}"
                yield Violation(NAME, e.t, text, digest.near(e.t - 5, e.t, e["revision"]))


def _two_at_once(digest: Digest) -> Iterator[Violation]:
    """No two living Dispatch functions take themselves for the home of a revision in a calm cluster."""
    claims: dict[str, list[tuple[str, int, float, float]]] = defaultdict(list)
    since: dict[tuple[str, int, str], float] = {}

    def over(key: tuple[str, int, str], t: float) -> None:
        if key in since:
            claims[key[2]].append((key[0], key[1], since.pop(key), t))

    for e in digest.events:
        if e.what == "home" and not e["deleted"]:
            since.setdefault((e.by, e.pid, e["revision"]), e.t)
        elif e.what in ("home", "unhome"):
            over((e.by, e.pid, e["revision"]), e.t)
        elif e.what == "died":
            for key in [k for k in since if k[1] == e["of"]]:
                over(key, e.t)
    for key in list(since):
        over(key, digest.end)
    for revision, spans in claims.items():
        for k, (a, pid, a_from, a_to) in enumerate(spans):
            for b, other, b_from, b_to in spans[:k]:
                both = (max(a_from, b_from), min(a_to, b_to))
                if pid == other or both[0] >= both[1]:
                    continue
                calm = length(minus(both, digest.disturbed()))
                if calm > 2 * digest.limits.late_s:
                    text = f"{revision} had two homes for {calm:.1f} s of calm: {a} and {b}"
                    yield Violation(NAME, both[0], text, digest.near(*both, revision))


def _one_process(digest: Digest) -> Iterator[Violation]:
    first: dict[str, tuple[str, int]] = {}
    for p in digest.processes:
        before = first.setdefault(p.instance, (p.node, p.pid))
        if before != (p.node, p.pid):
            text = (
                f"{p.instance} was started twice: on {before[0]} (pid {before[1]}) and {p.node} (pid {p.pid})"
            )
            yield Violation(NAME, p.began, text, digest.near(p.began - 15, p.began, p.instance))
