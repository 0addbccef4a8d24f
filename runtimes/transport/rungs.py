"""Which rungs a channel has: what the dialler has ready to offer, and what the listener makes of an offer.

A rung that can't be had is passed over with the reason; who set the channel up finds it on the channel. What was made
for a kind that the other side won't have does not outlive the handshake.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Final, Literal

from runtimes.transport.carriers import SocketStream
from runtimes.transport.channel import ChannelError, Link, Rung
from runtimes.transport.cuda.ipc import IpcKind
from runtimes.transport.handshake import Identity, Offer, Ready
from runtimes.transport.kinds import Kind, Setting, ShmKind, TcpKind
from runtimes.transport.link import Sockets
from runtimes.transport.nixl import NixlKind
from runtimes.transport.verbs.kind import VerbsKind

#: Best first, for whoever doesn't choose (docs/decisions/0011): no copies, then copies within one host, then copies
#: and a network.
RUNGS: Final[tuple[Rung, ...]] = ("rdma", "ipc", "shm", "rdma-staged", "nixl", "tcp")

#: What an operator means by RDMA.
VERBS: Final[tuple[Rung, ...]] = ("rdma", "rdma-staged")

_Name = Literal["ipc", "shm", "rdma", "nixl", "tcp"]
_OF: Final[dict[Rung, _Name]] = {
    "ipc": "ipc",
    "shm": "shm",
    "rdma": "rdma",
    "rdma-staged": "rdma",
    "nixl": "nixl",
    "tcp": "tcp",
}
_OFFER: Final[dict[_Name, Callable[[Setting], Kind]]] = {
    "ipc": IpcKind,
    "shm": ShmKind.offered,
    "rdma": VerbsKind.offered,
    "nixl": NixlKind.offered,
    "tcp": TcpKind,
}
_ANSWER: Final[dict[_Name, Callable[[bytes, Setting], Kind]]] = {
    "ipc": lambda word, setting: IpcKind(setting),
    "shm": ShmKind.answered,
    "rdma": VerbsKind.answered,
    "nixl": NixlKind.answered,
    "tcp": lambda word, setting: TcpKind(setting),
}


class Begun:
    """What one side holds of a channel before its connections stand."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}
        self.rungs: tuple[Rung, ...] = ()
        self.passed: list[str] = []

    def try_kind(self, name: str, make: Callable[[], Kind]) -> None:
        try:
            self.kinds[name] = make()
        except ChannelError as error:
            self.passed.append(f"{name}: {error.detail or error.reason}")

    def words(self) -> dict[str, bytes]:
        return {name: kind.word() for name, kind in self.kinds.items()}

    def link(self, control: socket.socket, bulk: socket.socket) -> Link:
        stream = SocketStream(bulk)
        ways = {way.rung: way for kind in self.kinds.values() for way in kind.ways(stream)}
        kinds = tuple(self.kinds.values())
        return Sockets(control, bulk, kinds, [ways[rung] for rung in self.rungs])

    def close(self) -> None:
        kinds, self.kinds = self.kinds, {}
        for kind in kinds.values():
            kind.close()


class Offered(Begun):
    """The dialler's: everything that it can have."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self._window = setting.window
        for name in _names(setting.rungs):
            self.try_kind(name, lambda name=name: _OFFER[name](setting))  # type: ignore[misc]
        self._offered = tuple(rung for rung in setting.rungs if _OF.get(rung) in self.kinds)

    def offer(self, pair: str, who: Identity, peer_generation: int) -> Offer:
        nonce = secrets.token_bytes(16)
        facts = (self._offered, self.words(), self._window, tuple(self.passed))
        return Offer(pair, "control", who, peer_generation, nonce, *facts)

    def agreed(self, word: Ready) -> None:
        """By the listener: `word` is its last one."""
        self.rungs, self.passed = word.rungs, list(word.passed)
        if not set(self.rungs) <= set(self._offered) or not {_OF[rung] for rung in self.rungs} <= set(
            word.ways
        ):
            raise ChannelError(
                "protocol", f"the listener claims {', '.join(self.rungs)}, which was not offered"
            )
        for name in set(self.kinds) - set(word.ways):
            self.kinds.pop(name).close()
        for name, kind in self.kinds.items():
            kind.agreed(word.ways[name])

    def forget(self) -> None:
        for kind in self.kinds.values():
            kind.forget()


def begin(offer: Offer, setting: Setting) -> Begun:
    """The listener's: every rung of the offer that it can have, too, in its own order."""
    begun = Begun()
    common = [rung for rung in setting.rungs if rung in offer.rungs]
    agreed = setting._replace(rungs=common, window=offer.window or setting.window)
    for name in _names(setting.rungs):
        if name not in offer.ways:
            begun.passed += [why for why in offer.passed if why.startswith(f"{name}:")]
        elif any(_OF[rung] == name for rung in common):
            begun.try_kind(name, lambda name=name: _ANSWER[name](offer.ways[name], agreed))  # type: ignore[misc]
    begun.rungs = tuple(rung for rung in common if _OF[rung] in begun.kinds)
    if not begun.rungs and not begun.passed:
        here, there = (", ".join(rungs) or "none" for rungs in (setting.rungs, offer.rungs))
        begun.passed = [*offer.passed, f"{here} at prefill, {there} at decode; set kv-transfer equal"]
    return begun


def _names(rungs: Sequence[Rung]) -> list[_Name]:
    """Of the kinds that bring them."""
    return list(dict.fromkeys(_OF[rung] for rung in rungs if rung in _OF))
