"""The hello of a connection: both sides prove that they hold the cluster key, and learn each other's name.

Challenge and response with HMAC-SHA256 over both nonces, both names and the prover's role, so that a proof can be
neither replayed nor reflected. Nothing is handled before it: nobody outside the cluster may start, stop or redirect.

    caller -> listener   [name, nonce]
    listener -> caller   [name, nonce, proof]
    caller -> listener   [proof]
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TypeVar

import msgspec

T = TypeVar("T")

VERSION = b"galaxy-rpc-1"
NONCE_BYTES = 16


class HelloFailed(Exception):
    """The peer doesn't hold our key, or speaks something else. The text says what to do."""


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


def prove(key: bytes, role: bytes, caller: Challenge, listener_name: str, listener_nonce: bytes) -> bytes:
    """The proof of one side (role b"caller" or b"listener") for this pair of names and nonces."""
    parts = (VERSION, role, caller.name.encode(), caller.nonce, listener_name.encode(), listener_nonce)
    text = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return hmac.digest(key, text, hashlib.sha256)


def decode(body: bytes, what: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(body, type=what)
    except msgspec.DecodeError as error:
        raise HelloFailed(f"the peer's hello is not ours: {error}") from error


def check(expected: bytes, given: bytes, peer: str) -> None:
    if not hmac.compare_digest(expected, given):
        raise HelloFailed(
            f"{peer or 'the peer'} holds another cluster key: start it with this cluster's data folder "
            "(cluster.key must be the same file everywhere)"
        )
