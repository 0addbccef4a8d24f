"""The hello of a connection: both sides prove that they hold the cluster key, and learn each other's name.

Challenge and response with HMAC-SHA256 over both nonces, both names and the prover's role, so that a proof can be
neither replayed nor reflected. Nothing is handled before it: nobody outside the cluster may start, stop or redirect.

    caller -> listener   [name, nonce]
    listener -> caller   [name, nonce, proof]
    caller -> listener   [proof]

Whoever finds the other's proof wrong says so with [why] instead of its next message, so that both logs tell.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TypeVar

import msgspec

from kserve_ext.wire.messages import UNREADABLE

T = TypeVar("T")

VERSION = b"galaxy-rpc-1"
NONCE_BYTES = 16


class HelloFailed(Exception):
    """The peer doesn't hold our key, or speaks something else. The text says what to do."""


class HelloRefused(HelloFailed):
    """The peer says that we don't hold its key."""


class Challenge(msgspec.Struct, array_like=True, frozen=True):
    name: str
    nonce: bytes


class Response(msgspec.Struct, array_like=True, frozen=True):
    name: str
    nonce: bytes
    proof: bytes


class Confirm(msgspec.Struct, array_like=True, frozen=True):
    proof: bytes


class Refusal(msgspec.Struct, array_like=True, frozen=True):
    why: str


encode = msgspec.msgpack.Encoder().encode


class Greeting:
    """One side of one hello: bodies in, bodies out. `peer` is the other's name once `done`."""

    __slots__ = ("_challenge", "_key", "_name", "_nonce", "caller", "done", "peer")

    def __init__(self, name: str, key: bytes, nonce: bytes, *, caller: bool) -> None:
        self._name = name
        self._key = key
        self._nonce = nonce
        self._challenge = Challenge(name, nonce) if caller else None
        self.caller = caller
        self.done = False
        self.peer = ""

    def first(self) -> bytes:
        """What the caller sends as soon as it is connected."""
        return encode(self._challenge)

    def received(self, body: bytes) -> bytes:
        """Takes the peer's message and gives the next one of ours, b"" = none. Raises HelloFailed."""
        if self.caller:
            return self._respond(body)
        if self._challenge is None:
            self._challenge = _decode(body, Challenge)
            return encode(
                Response(self._name, self._nonce, self._prove(b"listener", self._name, self._nonce))
            )
        proof = self._prove(b"caller", self._name, self._nonce)
        _check(proof, _decode(body, Confirm).proof, self._challenge.name)
        self.peer, self.done = self._challenge.name, True
        return b""

    def _respond(self, body: bytes) -> bytes:
        response = _decode(body, Response)
        _check(self._prove(b"listener", response.name, response.nonce), response.proof, response.name)
        self.peer, self.done = response.name, True
        return encode(Confirm(self._prove(b"caller", response.name, response.nonce)))

    def _prove(self, role: bytes, listener: str, listener_nonce: bytes) -> bytes:
        assert self._challenge is not None
        parts = (
            VERSION,
            role,
            self._challenge.name.encode(),
            self._challenge.nonce,
            listener.encode(),
            listener_nonce,
        )
        text = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
        return hmac.digest(self._key, text, hashlib.sha256)


def _decode(body: bytes, what: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(body, type=what)
    except UNREADABLE as error:
        why = _refusal(body)
        if why:
            raise HelloRefused(f"the peer refused the hello: {why}") from None
        raise HelloFailed(f"the peer's hello is not ours: {error}") from None


def _refusal(body: bytes) -> str:
    try:
        return msgspec.msgpack.decode(body, type=Refusal).why
    except UNREADABLE:
        return ""


def _check(expected: bytes, given: bytes, peer: str) -> None:
    if not hmac.compare_digest(expected, given):
        raise HelloFailed(
            f"{peer or 'the peer'} holds another cluster key: start it with this cluster's data folder "
            "(cluster.key must be the same file everywhere)"
        )
