"""How two sides of a connection prove to each other that they belong to this cluster, and agree on rungs.

Both show that they know the cluster key without sending it: an HMAC over both nonces and the whole offer, so
that nothing of it can be changed on the way. Layouts and generations are compared here: after it, a channel can't
connect the wrong incarnations or incompatible caches. The listener says which rungs it has, and touches the offered
memory, only when the dialler has proved itself.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
from typing import Annotated, Final, Literal, NoReturn, TypeVar

import msgspec

from kserve_ext.wire.messages import UNREADABLE
from runtimes.transport.channel import ChannelError, Reason, Rung
from runtimes.transport.layout import Layout, differences
from runtimes.transport.sockets import read_message, write_message

NO_RUNG: Final = "no rung that both sides may use"
MOST_WINDOW: Final = (
    256 << 20
)  # bytes that a listener sets aside, and registers with devices, for one channel
_MOST: Final = 64 << 10  # bytes of a message from somebody who has proved nothing yet
_M = TypeVar("_M", bound=msgspec.Struct)


class Identity(msgspec.Struct, frozen=True):
    """Who a side is, and what its blocks are like."""

    name: Annotated[str, msgspec.Meta(max_length=512)]
    generation: int
    layout: Layout


class Offer(msgspec.Struct, frozen=True):
    """Dialler -> listener."""

    pair: str  # joins the two connections
    kind: Literal["control", "bulk"]
    who: Identity
    peer_generation: int  # of the listener, as the lease says; 0 = any
    nonce: bytes
    rungs: tuple[Rung, ...] = ()
    ways: dict[str, bytes] = {}  # what each kind of connection (kinds.py) has to say
    window: Annotated[int, msgspec.Meta(ge=0, le=MOST_WINDOW)] = 0
    passed: tuple[str, ...] = ()  # kinds that the dialler would have liked, and why it can't


class Answer(msgspec.Struct, frozen=True):
    """Listener -> dialler. `refused` is "" or a reason."""

    who: Identity
    nonce: bytes
    refused: str = ""
    detail: str = ""
    proof: bytes = b""


class Proof(msgspec.Struct, frozen=True):
    """Dialler -> listener."""

    proof: bytes


class Ready(msgspec.Struct, frozen=True):
    """Listener -> dialler, once the connection is in use."""

    rungs: tuple[Rung, ...]  # that both can have, best first; of a control connection
    ways: dict[str, bytes] = {}
    passed: tuple[str, ...] = ()  # those that can't be had, and why
    proof: bytes = b""


def prove(key: bytes, side: str, offer: bytes, answer_nonce: bytes, choice: str) -> bytes:
    text = b"\0".join((side.encode(), hashlib.sha256(offer).digest(), answer_nonce, choice.encode()))
    return hmac.new(key, text, hashlib.sha256).digest()


def dial(connection: socket.socket, key: bytes, offer: Offer) -> tuple[Identity, Ready]:
    """Who the listener is, and its last word. Raises ChannelError if it refuses or lacks the key."""
    sent = msgspec.msgpack.encode(offer)
    write_message(connection, sent)
    answer = _read(connection, Answer)
    choice = _said(answer)
    if not hmac.compare_digest(answer.proof, prove(key, "listener", sent, answer.nonce, choice)):
        raise ChannelError("unauthenticated", "the listener does not know the cluster key")
    if answer.refused:
        raise ChannelError(_reason(answer.refused), answer.detail)
    write_message(
        connection,
        msgspec.msgpack.encode(Proof(prove(key, "dialler", sent, answer.nonce, choice))),
    )
    ready = _read(connection, Ready)
    if not hmac.compare_digest(ready.proof, prove(key, "ready", sent, answer.nonce, _said(ready))):
        raise ChannelError("unauthenticated", "the rungs were changed on the way")
    if not ready.rungs:
        raise ChannelError("incompatible", "; ".join((NO_RUNG, *ready.passed)))
    return answer.who, ready


def read_offer(connection: socket.socket, key: bytes, who: Identity) -> tuple[Offer, bytes]:
    """Whoever sent one that can't be read is told so."""
    sent = read_message(connection, _MOST)
    try:
        return msgspec.msgpack.decode(sent, type=Offer), sent
    except UNREADABLE as error:
        refuse(connection, key, sent, who, ("protocol", str(error)))


def objection(offer: Offer, who: Identity) -> tuple[Reason, str] | None:
    """Why this listener won't have this pair."""
    if offer.peer_generation not in (0, who.generation):
        detail = f"generation {offer.peer_generation} was meant, this is {who.generation}"
        return "generation", detail
    differ = differences(prefill=who.layout, decode=offer.who.layout)
    return ("incompatible", "; ".join(differ)) if differ else None


def answer(connection: socket.socket, key: bytes, sent: bytes, who: Identity) -> bytes:
    """Takes an offer, and checks the dialler's proof. The nonce, for `ready`."""
    word = Answer(who, secrets.token_bytes(16))
    _answer(connection, key, sent, word)
    theirs = _read(connection, Proof)
    if not hmac.compare_digest(theirs.proof, prove(key, "dialler", sent, word.nonce, _said(word))):
        raise ChannelError("unauthenticated", "the dialler does not know the cluster key")
    return word.nonce


def refuse(
    connection: socket.socket, key: bytes, sent: bytes, who: Identity, why: tuple[Reason, str]
) -> NoReturn:
    _answer(connection, key, sent, Answer(who, secrets.token_bytes(16), *why))
    raise ChannelError(*why)


def _answer(connection: socket.socket, key: bytes, sent: bytes, word: Answer) -> None:
    proof = prove(key, "listener", sent, word.nonce, _said(word))
    write_message(connection, msgspec.msgpack.encode(msgspec.structs.replace(word, proof=proof)))


def ready(connection: socket.socket, key: bytes, sent: bytes, nonce: bytes, word: Ready) -> None:
    """The last word of the listener; its proof is put in here."""
    proven = msgspec.structs.replace(word, proof=prove(key, "ready", sent, nonce, _said(word)))
    write_message(connection, msgspec.msgpack.encode(proven))


def _said(word: Answer | Ready) -> str:
    """All of it but the proof."""
    return msgspec.msgpack.encode(msgspec.structs.replace(word, proof=b"")).hex()


def _read(connection: socket.socket, kind: type[_M]) -> _M:
    try:
        return msgspec.msgpack.decode(read_message(connection, _MOST), type=kind)
    except UNREADABLE as error:
        raise ChannelError("protocol", str(error)) from error


def _reason(word: str) -> Reason:
    known: tuple[Reason, ...] = ("generation", "incompatible", "unauthenticated", "closed", "timeout")
    return next((reason for reason in known if reason == word), "protocol")
