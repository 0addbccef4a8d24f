"""Backends when something of our own fails: it is said, and probing goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from activator_replacement.knative.discovery.backends import Backends
from kserve_ext.api.knative.endpoints import Addresses
from kserve_ext.api.knative.revision import read
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.knative.pods import OK, Rules
from tests.support.api_server import ApiServer
from tests.support.dataplane import run

FACTS = read({"metadata": {"namespace": "default", "name": "r"}, "spec": {"containers": []}})
POD = "10.0.0.1:8012"


class Endpoints:
    def addresses(self, key: RevisionKey, public: bool, port_name: str) -> tuple[str, Addresses]:
        return "r-private", Addresses(frozenset((POD,)), frozenset())


class Users:
    def __init__(self) -> None:
        self.used = asyncio.Event()
        self.faults = 0

    def use(self, key: RevisionKey, pods: set[str], cluster: str, ready: int, mesh_host: bytes) -> None:
        if self.faults:
            self.faults -= 1
            raise RuntimeError("of whoever uses it")
        if pods == {POD}:
            self.used.set()

    def share(self, key: RevisionKey, *_: Any) -> None: ...


class Prober:
    def __init__(self, faults: int) -> None:
        self.faults = faults

    async def probe(self, addr: str, mesh_host: str = "", *, keep: bool = False) -> int:
        if self.faults:
            self.faults -= 1
            raise RuntimeError("of the prober")
        return OK


@pytest.mark.parametrize(("asking", "using"), [(3, 0), (0, 1), (2, 1)])
def test_a_fault_is_in_the_log_and_probing_goes_on(
    asking: int, using: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            client, users = api.client(), Users()
            users.faults = using
            backends = Backends(client, Endpoints(), Prober(asking), users, Rules(every_s=0.01), "10.9.9.9")
            backends.revision(FACTS)
            await users.used.wait()
            backends.close()
            await client.close()

    run(test(), 100)
    said = [record.getMessage() for record in caplog.records]
    assert sum("probe of default/r" in line for line in said) == asking
    assert sum("could not be told" in line for line in said) == using
