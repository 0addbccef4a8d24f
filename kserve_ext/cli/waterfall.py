"""The marks of one request as a waterfall: who did what when, with bars. Pure: document in, lines out.

Each place (shard, node, instance) is a lane of its own; a bar runs from the lane's mark before, or from the request's
arrival, to the mark. Marks of an instance from before the request and after its end are left out: they are not part
of its time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

Document = dict[str, Any]
WIDTH: Final = 32
#: What marks mean, for people; by who made them. A mark that is not listed is shown by its own name.
WORDS: Final[Mapping[str, Mapping[str, str]]] = {
    "dispatch": {
        "arrived": "request head read",
        "held": "held: no free slot",
        "demand": "demand told to home",
        "chosen": "instance that it prefers",
        "slot": "slot given",
        "sent": "sent to the instance",
        "first_byte": "first byte of the answer",
        "last_byte": "last byte of the answer",
        "failed": "its instance broke off",
        "continued": "another instance goes on",
    },
    "node": {
        "decided": "home decided to start it",
        "placed": "Schedule function chose the node",
        "borrowed": "another partition was asked",
        "admitted": "node admitted it",
        "fetching": "model is brought near",
        "model_cached": "model is on the node",
        "starting": "being started",
        "forked": "process forked",
        "imported": "imports done",
        "listening": "port open",
        "weights_loaded": "weights loaded",
        "shape_asked": "shaped engine asked",
        "shape_taken": "shaped engine is of this shape",
        "weights_into_shape": "weights loaded into a shaped engine",
        "engine_ready": "engine ready",
        "first_token": "engine's own first token",
        "channel_listening": "KV channels can be opened",
        "channel_ready": "KV channel open",
        "ready": "ready, told to home and shard",
        "asleep": "its channels have ended, and it sleeps",
        "awake": "awake, its memory registered anew",
        "failed": "ended by itself",
        "gone": "ended",
    },
    "instance": {
        "received": "request received",
        "tokenised": "prompt tokenised",
        "decided": "decided where to prefill",
        "prefill_leased": "prefill slot leased",
        "channel": "KV channel at hand",
        "rung": "way of the KV chosen",
        "prefill_received": "prefill asked for",
        "prefill_start": "prefill began",
        "prefill_end": "prefill done",
        "decode_start": "decode engine asked",
        "decode_failed": "decode engine failed",
        "decode_answered": "decode engine answers",
        "kv_released": "KV given back",
        "transfer": "KV transferred",
        "recompute": "KV recomputed",
        "first_token": "first token",
        "last_token": "last token",
        "answered": "answer written",
    },
}


class Row(NamedTuple):
    """One line; times in ms after the request's arrival."""

    where: str
    name: str
    begin_ms: float
    at_ms: float
    detail: str

    @property
    def took_ms(self) -> float:
        return self.at_ms - self.begin_ms


def rows(document: Document) -> list[Row]:
    """In order of time."""
    marks = sorted(document.get("marks") or [], key=lambda m: m["at"])
    own = [m for m in marks if m.get("source") == "dispatch"]
    if not own:
        return []
    arrived = float(own[0]["at"])
    over = max(float(m["at"]) for m in marks if m.get("source") != "node" or not document.get("outcome"))
    last: dict[str, float] = {}
    found = []
    for mark in marks:
        at = float(mark["at"])
        if not arrived <= at <= over:
            continue
        where = str(mark["where"])
        begin = last.get(where, arrived)
        last[where] = at
        found.append(
            Row(
                where,
                _word(str(mark.get("source")), str(mark["name"])),
                (begin - arrived) * 1000,
                (at - arrived) * 1000,
                str(mark.get("detail") or ""),
            )
        )
    return found


def _word(source: str, name: str) -> str:
    return WORDS.get(source, {}).get(name) or name.replace("_", " ")


def bar(row: Row, total_ms: float, width: int = WIDTH) -> str:
    """A line of `width` characters with the part that the row took."""
    if total_ms <= 0:
        return "▏".ljust(width)
    begin = min(width - 1, int(row.begin_ms / total_ms * width))
    end = min(width, max(begin + 1, round(row.at_ms / total_ms * width)))
    block = "█" * (end - begin) if row.took_ms / total_ms * width >= 0.5 else "▏"
    return (" " * begin + block).ljust(width)[:width]


def lines(document: Document) -> list[str]:
    """The whole picture."""
    found = rows(document)
    total = max((row.at_ms for row in found), default=0.0)
    head = [f"request {document['id']}  {document.get('outcome') or 'in flight'}  {total:.0f} ms"]
    head.append(
        f"revision {document.get('revision', '?')}, instance {document.get('instance') or '(none)'}, "
        f"{'cold start' if document.get('cold') else 'warm'}, shard {document.get('shard', '?')}"
    )
    for lane in document.get("instances") or []:
        transfer = lane.get("kv_transfer") or lane.get("kv")
        # The other half of a group computes for itself: what counts is how it came to the one that answered.
        if transfer and lane["instance"] == document.get("instance"):
            head.append(f"KV transfer at {lane['instance']}: {_facts(transfer)}")
            head += _pair(lane)
        if lane.get("ended"):
            head.append(f"instance {lane['instance']} has ended: {lane['ended']}")
    where = max((len(row.where) for row in found), default=0)
    name = max((len(row.name) for row in found), default=0)
    body = [f"{'at ms':>9}  {'took ms':>9}  {'':{WIDTH}}  {'what':{name}}  {'where':{where}}  detail"]
    for row in found:
        times = f"{row.at_ms:9.1f}  {row.took_ms:9.1f}  {bar(row, total)}"
        body.append(f"{times}  {row.name:{name}}  {row.where:{where}}  {row.detail}".rstrip())
    return [*head, "", *body]


def _pair(lane: Document) -> list[str]:
    """With whom, and why not by a better method."""
    prefill = lane.get("prefill")
    if not isinstance(prefill, dict) or not prefill.get("instance"):
        return []
    generation = f", generation {prefill['generation']}" if prefill.get("generation") else ""
    found = [f"pair: {lane['instance']} – {prefill['instance']}{generation}"]
    return found + [f"not by {why}" for why in prefill.get("passed") or ()]


def _facts(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item not in (None, ""))
    return str(value)
