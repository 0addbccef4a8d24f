"""A websocket to a part of ours, with mutual TLS where there is an identity and the other side takes it."""

from __future__ import annotations

from typing import Any

import aiohttp

from kserve_ext.rpc.mutual_tls import Identity, speaks_plain


async def connect(
    session: aiohttp.ClientSession, url: str, identity: Identity | None, **options: Any
) -> aiohttp.ClientWebSocketResponse:
    """As session.ws_connect. Who speaks without TLS is tried so at once, unless mutual TLS is strict."""
    made: aiohttp.ClientWebSocketResponse
    if identity is not None and url.startswith("ws://"):
        why = "is asked without TLS, as there is no certificate here yet"
        if identity.client is not None:
            secured = {"ssl": identity.client, "server_hostname": identity.name, **options}
            try:
                made = await session.ws_connect(f"wss{url[2:]}", **secured)
            except (aiohttp.ClientError, OSError) as error:
                if not speaks_plain(_cause(error)):
                    raise
                why = "does not speak TLS"
            else:
                return made
        if not identity.allows_plain(url, why):
            raise ConnectionError(f"it {why}, and mutual TLS is strict")
    made = await session.ws_connect(url, **options)
    return made


def _cause(error: BaseException) -> BaseException:
    """What aiohttp wraps."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return error.certificate_error
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error
    return error
