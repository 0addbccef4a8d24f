"""Mutual TLS between parts of ours: one certificate that each shows, and one name that each wants to see.

A certificate counts when an authority of ours has signed it and it has our name: of an authority that others use as
well, the name keeps them out. What is loaded counts from the next handshake on; connections that are open stay.
Unless it is strict, parts that speak without TLS (Knative's own, ours of before) are spoken to as well, and the log
says so; a certificate that doesn't count is refused always. TLS 1.3 and nothing less.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable
from typing import Any, Final

log = logging.getLogger(__name__)

#: How a TLS connection begins. HTTP never does, and of our frames only a hello with a name of 700 letters would.
HANDSHAKE: Final = b"\x16\x03"
_MOST_NAMED: Final = 1000


class BadIdentity(ValueError):
    """The certificate, its key or the authorities can't be used; says which."""


class Identity:
    def __init__(self, name: str, *, strict: bool = False) -> None:
        self.name = name
        self.strict = strict
        #: For connections that we accept and that we make; None: nothing has been loaded.
        self.server: ssl.SSLContext | None = None
        self.client: ssl.SSLContext | None = None
        self._plain: set[str] = set()

    def load(self, certificate: bytes, key: bytes, authorities: bytes) -> None:
        """PEM each. Raises BadIdentity, and what was loaded before stays."""
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.verify_mode = ssl.CERT_REQUIRED
        server.sslobject_class = _wanting(self.name)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for context in (server, client):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            try:
                context.load_verify_locations(cadata=authorities.decode("ascii"))
            except (ssl.SSLError, ValueError) as error:
                raise BadIdentity(f"the authorities can't be used: {error}") from error
            try:
                load_pair(context, certificate, key)
            except ssl.SSLError as error:
                raise BadIdentity(f"the certificate or its key can't be used: {error}") from error
        self.server, self.client = server, client

    def allows_plain(self, peer: str, why: str) -> bool:
        """Whether to go on with a peer that speaks without TLS; the log has each such peer once."""
        if peer not in self._plain and len(self._plain) < _MOST_NAMED:
            self._plain.add(peer)
            what = "refused, since" if self.strict else "it is spoken to without, until"
            log.warning("%s %s: %s mutual TLS is strict", peer, why, what)
        return not self.strict


def speaks_plain(error: BaseException) -> bool:
    """Whether a handshake failed because the other side doesn't speak TLS, and not for what it showed or saw."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return False
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        return "ALERT" not in (error.reason or "ALERT")
    return isinstance(error, (ssl.SSLEOFError, ConnectionError)) and not isinstance(
        error, ConnectionRefusedError
    )


async def connect(
    factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, identity: Identity | None
) -> None:
    """As the loop's create_connection. Who speaks without TLS is tried so at once, unless it is strict."""
    loop = asyncio.get_running_loop()
    if identity is not None:
        peer, why = f"{host}:{port}", "is asked without TLS, as there is no certificate here yet"
        if identity.client is not None:
            try:
                await loop.create_connection(
                    factory, host, port, ssl=identity.client, server_hostname=identity.name
                )
                return
            except OSError as error:
                if not speaks_plain(error):
                    raise
                why = "does not speak TLS"
        if not identity.allows_plain(peer, why):
            raise ConnectionError(f"{peer} {why}, and mutual TLS is strict")
    await loop.create_connection(factory, host, port)


def load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """By way of memory files: the module takes paths only, and the root file system is read-only."""
    files = [os.memfd_create(name) for name in ("certificate", "key")]
    try:
        for file, content in zip(files, (certificate, key), strict=True):
            os.write(file, content)
        context.load_cert_chain(*(f"/proc/self/fd/{file}" for file in files))
    finally:
        for file in files:
            os.close(file)


def _wanting(name: str) -> type[ssl.SSLObject]:
    """Servers look at no name by themselves: handshakes of this kind do."""

    class Handshake(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            shown: Any = (self.getpeercert() or {}).get("subjectAltName", ())
            names = [value for kind, value in shown if kind == "DNS"]
            if name not in names:
                raise ssl.SSLCertVerificationError(f"its certificate is of {names}, wanted: {name}")

    return Handshake
