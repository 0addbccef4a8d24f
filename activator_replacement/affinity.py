"""What a request is recognised by (annotation affinity), read off its head or the beginning of its body.

A session is named by the header x-session-id, or by the field `user` of OpenAI's bodies; the header wins, and a body
that is too long to be read while it is held has no session. A prefix begins at the body's `messages`, `prompt`,
`inputs` or `instances`, so that settings before it don't count. What can't be read prefers nothing: never an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec

from activator_replacement.seam import Exchange
from kserve_ext.core.dispatch.affinity import READ_BYTES, Keys, PrefixTree, choose, prefix_blocks
from kserve_ext.core.dispatch.choosing import Chosen, least_busy
from kserve_ext.core.dispatch.throttler import Tracker
from kserve_ext.core.facts import Affinity

SESSION_HEADER: Final = b"x-session-id"
WHOLE: Final = 1 << 62
_PROMPT: Final = re.compile(rb'"(?:messages|prompt|inputs|instances)"\s*:\s*')


class _Body(msgspec.Struct):
    user: str = ""


_body = msgspec.json.Decoder(_Body)


def keys_of(exchange: Exchange, affinity: Affinity, seed: str) -> Keys | None:
    """None: its body has to come first; whoever asked is called again (seam.Exchange.read)."""
    if affinity == "session":
        named = exchange.header(SESSION_HEADER)
        if named:
            return Keys(_named(named))
        body = exchange.read(WHOLE)
        return None if body is None else Keys(_user(body))
    if affinity == "prefix":
        body = exchange.read(READ_BYTES + 1024)
        return None if body is None else Keys(blocks=prefix_blocks(_prompt(body), seed))
    return Keys()


class AffinityChooser:
    """Of all revisions of a shard: the blocks of the tree name their service."""

    def __init__(self, tree: PrefixTree) -> None:
        self._tree = tree

    def choose(self, request: Any, there: Sequence[Tracker], now: float) -> Chosen | None:
        if not there:
            return None
        choice = choose(request.note.keys, {t.id: t.in_flight for t in there}, self._tree)
        if choice is None:
            return Chosen(least_busy(there))
        return Chosen(next(t for t in there if t.id == choice.instance), choice.why)

    def chosen(self, request: Any, chosen: Chosen, now: float) -> None:
        if chosen.why:
            request.note.mark("chosen", f"{chosen.tracker.id} ({chosen.why})")
        self._tree.note(request.note.keys.blocks, chosen.tracker.id)


def _named(value: bytes) -> str:
    """Also what is long or secret may name a session: it is shown and kept as a hash."""
    return blake2b(value, digest_size=6).hexdigest()


def _user(body: bytes) -> str:
    try:
        user = _body.decode(body).user
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
    return _named(user.encode()) if user else ""


def _prompt(body: bytes) -> bytes:
    found = _PROMPT.search(body)
    return body[found.end() :] if found else body
