"""The cluster's names: NAME.NAMESPACE.svc.cluster.local, answered from Services and Endpoints.

A Service without an address of its own answers with its ready endpoints, one with an external name with that name's
address. Everything else does not exist: there is no way out of the stack.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, cast

import aiohttp

from e2e.stack.place import NODE_IP
from e2e.stack.watch import Object, follow

_ZONE = ".svc.cluster.local"
_TTL_S = 1
_NO_SUCH_NAME = 3
_TYPE_A = 1
_MAX_ALIASES = 3


class Names:
    def __init__(self) -> None:
        self._services: dict[tuple[str, str], Object] = {}
        self._endpoints: dict[tuple[str, str], list[str]] = {}

    def service(self, change: str, obj: Object) -> None:
        key = obj["metadata"]["namespace"], obj["metadata"]["name"]
        if change == "GONE":
            self._services.pop(key, None)
        else:
            self._services[key] = obj["spec"]

    def endpoints(self, change: str, obj: Object) -> None:
        key = obj["metadata"]["namespace"], obj["metadata"]["name"]
        if change == "GONE":
            self._endpoints.pop(key, None)
        else:
            self._endpoints[key] = [
                address["ip"]
                for subset in obj.get("subsets") or []
                for address in subset.get("addresses") or []
            ]

    def lookup(self, name: str, aliases: int = _MAX_ALIASES) -> list[str] | None:
        """None: no such name."""
        name = name.rstrip(".").lower()
        service, dot, namespace = name.removesuffix(_ZONE).partition(".")
        spec = self._services.get((namespace, service)) if dot and name.endswith(_ZONE) else None
        if spec is None:
            return None
        if spec.get("externalName") and aliases:
            return self.lookup(spec["externalName"], aliases - 1)
        address = spec.get("clusterIP")
        return self._endpoints.get((namespace, service), []) if address in (None, "", "None") else [address]


class _Server(asyncio.DatagramProtocol):
    def __init__(self, names: Names) -> None:
        self._names = names

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: Any) -> None:
        try:
            answer = reply(self._names, data)
        except (IndexError, struct.error, UnicodeDecodeError):
            return
        self._transport.sendto(answer, address)


def reply(names: Names, query: bytes) -> bytes:
    position, labels = 12, []
    while length := query[position]:
        labels.append(query[position + 1 : position + 1 + length].decode("ascii"))
        position += 1 + length
    (kind,) = struct.unpack("!H", query[position + 1 : position + 3])
    found = names.lookup(".".join(labels))
    addresses = found if found is not None and kind == _TYPE_A else []
    flags = 0x8580 | (_NO_SUCH_NAME if found is None else 0)
    head = query[:2] + struct.pack("!HHHHH", flags, 1, len(addresses), 0, 0)
    records = b"".join(
        b"\xc0\x0c" + struct.pack("!HHIH", _TYPE_A, 1, _TTL_S, 4) + socket.inet_aton(address)
        for address in addresses
    )
    return head + query[12 : position + 5] + records


async def serve(client: aiohttp.ClientSession) -> None:
    names = Names()
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: _Server(names), local_addr=(NODE_IP, 53))
    await asyncio.gather(
        follow(client, "/api/v1/services", names.service),
        follow(client, "/api/v1/endpoints", names.endpoints),
    )
