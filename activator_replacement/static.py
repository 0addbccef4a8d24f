"""StaticDispatch: fixed routes from host names to addresses, without holding, slots or scaling.

For `--static HOST=ADDR` and for measuring the data plane alone; the functions of a cluster use dispatch.py.
"""

from __future__ import annotations

from activator_replacement.seam import Exchange, Refusal
from kserve_ext.core.ids import InstanceID, RevisionKey


class StaticDispatch:
    def __init__(self, routes: dict[str, str]) -> None:
        """`routes`: host -> host:port; "*" takes every other host."""
        self._routes = {host.encode(): addr for host, addr in routes.items()}

    def resolve(self, host: bytes, namespace: bytes | None, revision: bytes | None) -> RevisionKey | Refusal:
        addr = self._routes.get(host) or self._routes.get(host.partition(b":")[0]) or self._routes.get(b"*")
        if addr is None:
            known = ", ".join(sorted(name.decode() for name in self._routes))
            return Refusal(404, f"no service has the host {host.decode('latin-1')!r}; known are {known}")
        return RevisionKey(addr)

    def submit(self, exchange: Exchange) -> None:
        exchange.go(exchange.revision, InstanceID(exchange.revision))

    def sent(self, exchange: Exchange) -> None: ...
    def first_byte(self, exchange: Exchange) -> None: ...
    def finished(self, exchange: Exchange, outcome: int) -> None: ...

    def failed(self, exchange: Exchange, reason: str, retriable: bool) -> bool:
        return False

    def cancelled(self, exchange: Exchange) -> None: ...
