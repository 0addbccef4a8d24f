"""The condition KVTransferReady of a service in a group: whether KV can go from prefill to each decode, and how.

From what the decode instances say of their channels (runtimes/vllm_pd/keeper.py; keys that are missing are no fault).
True: every one of them has a channel to some prefill instance. Where kv-transfer-required makes recomputing an error,
everything else is False; otherwise what may only be a matter of time is Unknown. Never decides anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypedDict

TYPE: Final = "KVTransferReady"
#: Pairs that a message names; the others are counted.
MOST_NAMED: Final = 4
_NO_RUNG: Final = "no rung"

Facts = Mapping[str, Any]
Status = Literal["True", "False", "Unknown"]


class Port(TypedDict):
    device: str
    gid: str
    mtu: int


class Rung(TypedDict, total=False):
    rung: str
    ports: list[Port]


class Pair(TypedDict, total=False):
    peer: str
    state: str
    reason: str
    detail: str
    rungs: list[Rung]
    passed: list[str]


class Said(TypedDict, total=False):
    """What of an instance's word has to have its shape; it may say more."""

    kv_transfer: str
    required: bool
    peers: int | None
    pairs: list[Pair]


class Verdict(NamedTuple):
    status: Status
    reason: str
    message: str


def verdict(instances: Sequence[tuple[str, Facts]]) -> Verdict:
    """`instances`: the ready decode instances of the group, with what they say of their channels."""
    if not instances:
        return Verdict("Unknown", "NoInstance", "no ready decode instance tells of its channels")
    if all(facts.get("kv_transfer") == "none" for _, facts in instances):
        return Verdict(
            "False", "Disabled", "kv-transfer is none, or pd is never: decode computes all prompts"
        )
    lacking = [(name, facts) for name, facts in instances if not _standing(facts)]
    if lacking:
        found = [_lack(name, facts) for name, facts in lacking]
        worst = min(found, key=lambda each: ("False", "Unknown").index(each.status))
        return worst._replace(message=_listed(each.message for each in found))
    pairs = [(name, pair) for name, facts in instances for pair in _standing(facts)]
    methods = {_camel(_best(pair)) for _, pair in pairs}
    reason = methods.pop() if len(methods) == 1 else "SeveralMethods"
    return Verdict("True", reason, _listed(f"{name} – {pair_text(pair)}" for name, pair in pairs))


def pair_text(pair: Facts) -> str:
    """PEER: METHOD on DEVICE (ADDRESS, MTU), and why better methods were passed over."""
    text = f"{pair.get('peer', '?')}: {_best(pair)}"
    ports = next((rung.get("ports") or () for rung in pair.get("rungs") or ()), ())
    if ports:
        text += " on " + ", ".join(f"{p['device']} ({p['gid']}, MTU {p['mtu']})" for p in ports)
    return text + (f" [not {'; not '.join(pair['passed'])}]" if pair.get("passed") else "")


def _best(pair: Facts) -> str:
    return next((str(rung.get("rung")) for rung in pair.get("rungs") or ()), "none")


def _standing(facts: Facts) -> list[Facts]:
    """Those over which blocks can go now."""
    return [p for p in facts.get("pairs") or () if p.get("state") == "up" and p.get("rungs")]


def _lack(name: str, facts: Facts) -> Verdict:
    """Why this instance has no channel: what no time mends comes first."""
    pairs = facts.get("pairs") or ()
    refused = [p for p in pairs if p.get("reason") == "incompatible"]
    failed = [p for p in pairs if p.get("reason")]
    waiting: Status = "False" if facts.get("required") else "Unknown"
    if refused:
        detail = str(refused[0].get("detail", ""))
        pair = f"{name} – {refused[0].get('peer')}"
        if detail.startswith(_NO_RUNG):
            allowed = facts.get("kv_transfer", "auto")
            return Verdict("False", "RungUnavailable", f"{pair}: kv-transfer is {allowed}: {detail}")
        return Verdict("False", "Incompatible", f"{pair}: {detail}")
    if failed:
        pair = failed[0]
        why = ": ".join(str(pair[key]) for key in ("reason", "detail") if pair.get(key))
        return Verdict("False", _camel(str(pair["reason"])), f"{name} – {pair.get('peer')}: {why}")
    if any(p.get("state") == "up" for p in pairs):
        return Verdict("False", "RungUnavailable", f"{name}: no method of its channels works any more")
    if pairs:
        return Verdict(waiting, "Dialling", f"{name}: a channel is being set up")
    why = "it is not known which prefill instances there are"
    if facts.get("peers") is not None:
        why = "no prefill instance is ready"
    return Verdict(waiting, "NoPeer", f"{name}: {why}")


def _camel(word: str) -> str:
    return "".join(part.capitalize() for part in word.replace("_", "-").split("-"))


def _listed(texts: Iterable[str]) -> str:
    every = list(texts)
    more = len(every) - MOST_NAMED
    return "; ".join(every[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
