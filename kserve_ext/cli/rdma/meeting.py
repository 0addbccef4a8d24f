"""How the two sides of a link test meet: each proves that it knows the cluster key, and tells of its queue pairs.

    listener -> caller   nonce
    caller -> listener   [name, side, nonce, proof]
    listener -> caller   [side or why there is none, proof]

Both proofs cover both nonces and everything that was said, so nothing can be replayed or changed on the way, and the
listener touches no device before the caller has proved itself. It is not the handshake of a channel: a test can't be
taken for an instance with KV.
"""

from __future__ import annotations

import hmac
import secrets
import socket
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from kserve_ext.wire.messages import UNREADABLE
from runtimes.transport.channel import ChannelError
from runtimes.transport.sockets import read_message, write_message
from runtimes.transport.verbs.side import Side

_NONCE: Final = 16
_OTHER_KEY: Final = "the peer has another cluster key: the same file is needed on both machines"
_M = TypeVar("_M", bound=msgspec.Struct)


class Call(msgspec.Struct, frozen=True):
    name: str
    side: Side
    nonce: bytes
    proof: bytes = b""


class Reply(msgspec.Struct, frozen=True):
    side: Side | None = None
    refused: str = ""
    proof: bytes = b""


def call(connection: socket.socket, key: bytes, name: str, side: Side) -> Side:
    """The caller's: what the listener says of its side."""
    nonce = read_message(connection)
    asked = Call(name, side, secrets.token_bytes(_NONCE))
    asked = msgspec.structs.replace(asked, proof=_proof(key, b"caller", nonce, asked))
    write_message(connection, msgspec.msgpack.encode(asked))
    reply = _decoded(read_message(connection), Reply)
    said = msgspec.structs.replace(reply, proof=b"")
    if not hmac.compare_digest(reply.proof, _proof(key, b"listener", nonce, asked, said)):
        raise ChannelError("unauthenticated", _OTHER_KEY)
    if reply.side is None:
        raise ChannelError("incompatible", f"the peer: {reply.refused}")
    return reply.side


def answer(connection: socket.socket, key: bytes, ready: Callable[[Side], Side]) -> str:
    """The listener's: the caller's name. `ready` makes our side for theirs; the caller is told when it can't."""
    nonce = secrets.token_bytes(_NONCE)
    write_message(connection, nonce)
    asked = _decoded(read_message(connection), Call)
    said = msgspec.structs.replace(asked, proof=b"")
    reply, failure = Reply(), None
    if not hmac.compare_digest(asked.proof, _proof(key, b"caller", nonce, said)):
        failure = ChannelError("unauthenticated", _OTHER_KEY)
    else:
        try:
            reply = Reply(ready(asked.side))
        except ChannelError as error:
            reply, failure = Reply(refused=str(error)), error
    proof = _proof(key, b"listener", nonce, asked, reply)
    write_message(connection, msgspec.msgpack.encode(msgspec.structs.replace(reply, proof=proof)))
    if failure is not None:
        raise failure
    return asked.name


def _proof(key: bytes, role: bytes, nonce: bytes, *said: Call | Reply) -> bytes:
    parts = (b"galaxy doctor rdma", role, nonce, *map(msgspec.msgpack.encode, said))
    text = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return hmac.digest(key, text, "sha256")


def _decoded(body: bytes, kind: type[_M]) -> _M:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except UNREADABLE as error:
        raise ChannelError(
            "protocol", f"the peer is no `galaxy doctor rdma` of this version: {error}"
        ) from error
